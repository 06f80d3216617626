//! The Open Inference Protocol's gRPC service, on the port of everything else: clients begin with HTTP/2.

use axum::body::Body;
use axum::extract::{self, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::response;
use highroad_service::{Kind, Problem, RequestId};
use tonic::codec::CompressionEncoding::Gzip;
use tonic::codegen::Service as _;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use super::{App, Asker, ModelPath};
use crate::protocol::oip;
use crate::protocol::oip::grpc::proto::grpc_inference_service_server::{
    GrpcInferenceService, GrpcInferenceServiceServer,
};
use crate::protocol::oip::grpc::proto::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
    ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
    ServerReadyRequest, ServerReadyResponse,
};
use crate::protocol::oip::grpc::{infer_request, metadata_message, model_metadata_message, server_metadata_message};
use crate::revision::{Revision, Terms};

/// Where gRPC has its methods.
pub(super) const SERVICE: &str = "/inference.GRPCInferenceService/";
pub(super) const PATH: &str = "/inference.GRPCInferenceService/{method}";

/// Answers one call. A message may be as large as a body may be now, also after decompression.
pub(super) async fn answer(State(app): State<App>, request: extract::Request) -> response::Response {
    let body_bytes = app.portfolio.limits().body_bytes;
    let mut server = GrpcInferenceServiceServer::new(Inference(app))
        .max_decoding_message_size(body_bytes)
        .max_encoding_message_size(usize::MAX)
        .accept_compressed(Gzip)
        .send_compressed(Gzip);
    match server.call(request).await {
        Ok(response) => response.map(Body::new),
        Err(never) => match never {},
    }
}

pub(super) struct Inference(App);

#[tonic::async_trait]
impl GrpcInferenceService for Inference {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: self.0.portfolio.is_ready() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let ModelReadyRequest { name, version } = request.into_inner();
        let ready = match self.0.portfolio.hosted().get(&name) {
            Some(member) => self.0.portfolio.hosted_member(member.name()).and_then(|m| m.check_ready()).is_ok(),
            None => self.0.versioned(&model_path(name, version)).is_ok(),
        };
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(server_metadata_message()))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let ModelMetadataRequest { name, version } = request.into_inner();
        if let Some(member) = self.0.portfolio.hosted().get(&name) {
            let metadata = self.0.portfolio.hosted_member(member.name()).and_then(|member| member.metadata());
            let metadata = metadata.map_err(|error| status(&error.problem()))?;
            return Ok(Response::new(metadata_message(metadata)));
        }
        let path = model_path(name, version);
        let revision = self.0.versioned(&path).map_err(|problem| status(&problem))?;
        let (facts, manifest) = (revision.facts(), revision.manifest());
        Ok(Response::new(model_metadata_message(&path.model, facts, manifest, revision.program())))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        // The shell gives every request an id.
        let id = request.extensions().get::<RequestId>().cloned().unwrap_or(RequestId(String::new()));
        let asker = Asker::new(id, &request.metadata().clone().into_headers());
        let was_compressed = request.metadata().get("grpc-encoding").is_some_and(|encoding| encoding != "identity");
        let (reply, headers) = self.infer(&asker, request.into_inner()).await.map_err(|problem| status(&problem))?;
        let mut response = Response::new(reply);
        *response.metadata_mut() = MetadataMap::from_headers(ascii(headers));
        // Every client says that it reads gzip; those that send it are short of bandwidth, and the others of time.
        if !was_compressed {
            response.disable_compression();
        }
        Ok(response)
    }
}

impl Inference {
    async fn infer(
        &self,
        asker: &Asker,
        mut message: ModelInferRequest,
    ) -> Result<(ModelInferResponse, HeaderMap), Problem> {
        if self.0.portfolio.hosted().get(&message.model_name).is_some() {
            match crate::hosted::infer(&self.0.portfolio, &self.0.log, &asker.id.0, &message).await? {
                Ok(answered) => return Ok(answered),
                Err(own) => (message.model_name, message.model_version) = (own, String::new()),
            }
        }
        let path = model_path(message.model_name.clone(), message.model_version.clone());
        let assigned = self.0.assigned_version(&path, asker)?;
        let refused = |problem: &Problem| self.0.malformed(Some(&path.model), &[], &problem.message);
        let (request, form) = infer_request(message).inspect_err(refused)?;
        let terms = Terms { timeout: request.timeout, priority: request.priority, ..Terms::default() };
        let asked = assigned.revision();
        let task_inputs = oip::task_inputs(&asked.manifest().task);
        let (query, wanted) = request.query_of(asked.program().inputs(), task_inputs).inspect_err(refused)?;
        let reply = |revision: &Revision, outputs| {
            wanted.message(form, &path.model, revision.facts(), &revision.manifest().task.kind, outputs)
        };
        self.0.infer_with(&assigned, asker, query, terms, reply).await
    }
}

fn model_path(model: String, version: String) -> ModelPath {
    ModelPath { model, version: Some(version).filter(|version| !version.is_empty()) }
}

/// gRPC metadata has visible characters only.
fn ascii(headers: HeaderMap) -> HeaderMap {
    let visible = |value: &HeaderValue| value.to_str().is_ok();
    headers.into_iter().filter_map(|(name, value)| Some((name?, value))).filter(|(_, value)| visible(value)).collect()
}

/// A problem in gRPC's words; when to try again is in its metadata, as in HTTP's headers.
pub(crate) fn status(problem: &Problem) -> Status {
    let code = match problem.kind {
        Kind::Invalid | Kind::Unprocessable => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::Forbidden => Code::PermissionDenied,
        Kind::Conflict => Code::Aborted,
        Kind::TooLarge | Kind::Overloaded => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::Unsupported | Kind::MethodNotAllowed => Code::Unimplemented,
        _ => Code::Internal,
    };
    let headers = problem.respond(|_| serde_json::Value::Null).headers().clone();
    let retries = headers.into_iter().filter_map(|(name, value)| Some((name?, value)));
    let retries = retries.filter(|(name, _)| name.as_str().starts_with("retry-after")).collect();
    Status::with_metadata(code, problem.message.clone(), MetadataMap::from_headers(retries))
}
