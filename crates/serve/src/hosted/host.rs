//! What the host of a member says of itself: whether its model is ready, and its tensors, where it speaks the Open Inference Protocol.

use std::sync::Arc;
use std::time::{Duration, Instant};

use highroad_hosted::{HostedTask, Protocol};
use highroad_package::TaskKind;
use serde::Deserialize;
use serde_json::Value;

use super::{HostedMember, lock};
use crate::config::RequestLimits;
use crate::error::AskError;
use crate::protocol::ModelTask;
use crate::protocol::oip::{self, ModelMetadata, TensorMetadata, task_output_specs};
use crate::protocol::tei::{Info, LabelIds, ModelType};

/// Between two looks at a host.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long one may take.
const LOOK_WITHIN: Duration = Duration::from_secs(5);

/// What is known of a host.
#[derive(Default)]
pub(super) struct Host {
    looked_at: Option<Instant>,
    /// Why its model is not ready.
    pub(super) failure: Option<String>,
    metadata: Option<HostMetadata>,
}

/// The tensors of a host's model, of the answer to `GET /v2/models/{m}`.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct HostMetadata {
    inputs: Vec<Value>,
    outputs: Vec<Value>,
}

impl HostedMember {
    /// Looks at the host where that is due, and waits for it the first time only.
    pub(super) async fn look_at_host(self: &Arc<Self>) {
        if self.hosted().protocol != Protocol::Oip {
            return;
        }
        let before = {
            let mut host = lock(&self.host);
            if host.looked_at.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
                return;
            }
            host.looked_at.replace(Instant::now())
        };
        let this = Arc::clone(self);
        let looking = async move { this.look().await };
        match before {
            None => looking.await,
            // A host that does not answer holds up no other member.
            Some(_) => drop(tokio::spawn(looking)),
        }
    }

    async fn look(&self) {
        let Ok(serving) = self.serving() else { return };
        let oip = self.hosted().oip.as_ref();
        let version = oip.and_then(|oip| oip.version.as_ref()).map(|version| format!("/versions/{version}"));
        let path = format!("v2/models/{}{}", self.hosted().model, version.unwrap_or_default());
        let ready = serving.client.look(&format!("{path}/ready"), LOOK_WITHIN).await;
        let metadata = match &ready {
            Ok(_) => serving.client.look(&path, LOOK_WITHIN).await.ok(),
            Err(_) => None,
        };
        let failure = match &ready {
            // OpenVINO and others say in the body what Triton says by the status.
            Ok(body) => {
                let says = serde_json::from_slice::<Value>(body).ok().and_then(|body| body.get("ready")?.as_bool());
                (says == Some(false)).then(|| "its host says that the model is not ready".to_owned())
            }
            Err(fault) => Some(format!("its host does not have it ready: {}", fault.message)),
        };
        let mut host = lock(&self.host);
        if host.failure.is_some() != failure.is_some() {
            match &failure {
                Some(reason) => tracing::warn!(member.name = %self.name, "`{}`: {reason}", self.name),
                None => tracing::info!(member.name = %self.name, "The host of `{}` has it ready again", self.name),
            }
        }
        host.failure = failure;
        if let Some(metadata) = metadata.and_then(|body| serde_json::from_slice(&body).ok()) {
            host.metadata = Some(metadata);
        }
    }

    /// Errors where it may not be asked, or its host says that it is not ready.
    pub(crate) fn check_ready(&self) -> Result<(), AskError> {
        self.serving()?;
        match lock(&self.host).failure.clone() {
            None => Ok(()),
            Some(reason) => Err(AskError::NotReady { member: self.name.clone(), reason }),
        }
    }

    /// `GET /v2/models/{m}`: what the task takes and gives, then the tensors of the host's own.
    pub(crate) fn metadata(&self) -> Result<ModelMetadata, AskError> {
        let serving = self.serving()?;
        let HostMetadata { inputs, outputs } = lock(&self.host).metadata.clone().unwrap_or_default();
        let text = self.has_task().then(|| TensorMetadata::of(&(oip::TEXT, "BYTES", &[-1])));
        let answers = self.task().map(|task| task_output_specs(&task).iter().map(TensorMetadata::of).collect());
        // What the host tells that is no tensor is left out.
        let tensor = |told| serde_json::from_value::<TensorMetadata>(told).ok();
        let joined = |own: Vec<TensorMetadata>, others: Vec<Value>| -> Vec<TensorMetadata> {
            let is_new = |other: &TensorMetadata| own.iter().all(|known| known.name != other.name);
            let others: Vec<TensorMetadata> = others.into_iter().filter_map(tensor).filter(is_new).collect();
            own.into_iter().chain(others).collect()
        };
        Ok(ModelMetadata {
            name: self.name.clone(),
            versions: vec![oip::version(&serving.facts)],
            platform: "hosted",
            inputs: joined(text.into_iter().collect(), inputs),
            outputs: joined(answers.unwrap_or_default(), outputs),
        })
    }

    /// `GET /tei/{m}/info`
    pub(crate) fn tei_info(&self, limits: &RequestLimits) -> Result<Info, AskError> {
        let serving = self.serving()?;
        let hosted = self.hosted();
        let model_type = match hosted.task {
            HostedTask::Classify | HostedTask::Moderate => ModelType::Classifier(LabelIds::of(&hosted.labels)),
            HostedTask::Rerank => ModelType::Reranker(LabelIds::of(&["relevance".to_owned()])),
            HostedTask::Embed => ModelType::Embedding { pooling: "host" },
            HostedTask::Generate | HostedTask::Infer => {
                let (member, task) = (self.name.clone(), "another task");
                return Err(AskError::WrongTask { member, task, wanted: "embeddings, classification or reranking" });
            }
        };
        let mut info = Info::of(ModelTask::Hosted(hosted.task), &serving.facts, limits, model_type, None);
        info.model_id.clone_from(&hosted.model);
        info.max_concurrent_requests = hosted.limits.concurrency.get() as usize;
        Ok(info)
    }

    /// What its answers to texts are of.
    fn task(&self) -> Option<TaskKind> {
        let labels = || self.hosted().labels.clone();
        match self.hosted().task {
            HostedTask::Classify | HostedTask::Moderate => {
                Some(TaskKind::Classify { labels: labels(), flagged: None, pairs: false, thresholds: Vec::new() })
            }
            HostedTask::Embed => {
                Some(TaskKind::Embed { dimensions: 0, normalized: false, matryoshka_dimensions: Vec::new() })
            }
            _ => None,
        }
    }
}
