//! What a registry holds, model by model.

use std::collections::BTreeMap;

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    MAX_MODEL_TAG_BYTES, MODELS_PER_PAGE, RegistryClient, RegistryError, ResolvedVersion, Tag, VERSIONS_PER_PAGE,
    Version,
};
use crate::manifest::MAX_MANIFEST_BYTES;
use crate::{Digest, MANIFEST, Manifest, PackageError};

/// A registered model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisteredModel {
    /// Its name.
    pub name: String,
    /// Version of each alias.
    pub aliases: BTreeMap<String, u64>,
    /// Its newest version; `None` if it has none.
    pub newest: Option<u64>,
    /// Tags of the model itself.
    pub tags: BTreeMap<String, String>,
}

/// A version of a registered model, whatever it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelVersion {
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// The package it holds; `None` if it is none of ours.
    pub package: Option<ResolvedVersion>,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    registered_models: Vec<Model>,
    #[serde(default)]
    next_page_token: Option<String>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    #[serde(default)]
    aliases: Vec<Alias>,
    #[serde(default)]
    latest_versions: Vec<Version>,
    #[serde(default)]
    tags: Vec<Tag>,
}

#[derive(Deserialize)]
struct Alias {
    alias: String,
    version: String,
}

impl RegistryClient {
    /// Every registered model.
    pub async fn models(&self) -> Result<Vec<RegisteredModel>, RegistryError> {
        let (mut models, mut token) = (Vec::new(), String::new());
        loop {
            let query = [("max_results", MODELS_PER_PAGE), ("page_token", &token)];
            let request = self.mlflow(Method::GET, "registered-models/search").query(&query);
            let page: Page = self.ask(request, "list the registered models").await?;
            models.extend(page.registered_models.into_iter().map(RegisteredModel::from));
            match page.next_page_token.filter(|next| !next.is_empty() && *next != token) {
                Some(next) => token = next,
                None => return Ok(models),
            }
        }
    }

    /// Names of the registered models that have `alias`, whatever they hold.
    pub async fn models_with(&self, alias: &str) -> Result<Vec<String>, RegistryError> {
        let models = self.models().await?.into_iter();
        Ok(models.filter(|model| model.aliases.contains_key(alias)).map(|model| model.name).collect())
    }

    /// Version `number` of the model called `name`.
    pub async fn model_version(&self, name: &str, number: u64) -> Result<ModelVersion, RegistryError> {
        let label = format!("{name}:{number}");
        let query = [("name", name), ("version", &number.to_string())];
        let found = self.version("model-versions/get", &query, &label).await?;
        let version = found.ok_or(RegistryError::NotFound(label))?;
        let tags = version.tags.iter().map(|tag| (tag.key.clone(), tag.value.clone())).collect();
        Ok(ModelVersion { tags, package: version.resolved() })
    }

    /// Every version of every model that holds a package.
    pub async fn packages(&self) -> Result<Vec<ResolvedVersion>, RegistryError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            model_versions: Vec<Version>,
            #[serde(default)]
            next_page_token: Option<String>,
        }
        let (mut found, mut token) = (Vec::new(), String::new());
        loop {
            let query = [("max_results", VERSIONS_PER_PAGE), ("page_token", &token)];
            let request = self.mlflow(Method::GET, "model-versions/search").query(&query);
            let page: Page = self.ask(request, "list the model versions").await?;
            found.extend(page.model_versions.into_iter().filter_map(Version::resolved));
            match page.next_page_token.filter(|next| !next.is_empty() && *next != token) {
                Some(next) => token = next,
                None => return Ok(found),
            }
        }
    }

    /// The manifest of a package, compared with its digest; the rest of the package is not fetched.
    pub async fn manifest(&self, package: &Digest) -> Result<Manifest, RegistryError> {
        let limit = usize::try_from(MAX_MANIFEST_BYTES).unwrap_or(usize::MAX);
        let bytes = self.download(&format!("highroad/packages/{}/{MANIFEST}", package.hex()), limit).await?;
        match Digest::of(&bytes) {
            found if found == *package => Ok(Manifest::parse(&bytes)?),
            found => Err(PackageError::ManifestChanged { expected: *package, found }.into()),
        }
    }

    /// Tags of the model called `name` itself.
    pub async fn model_tags(&self, name: &str) -> Result<BTreeMap<String, String>, RegistryError> {
        #[derive(Deserialize)]
        struct Reply {
            registered_model: Tagged,
        }
        #[derive(Deserialize)]
        struct Tagged {
            #[serde(default)]
            tags: Vec<Tag>,
        }
        let request = self.mlflow(Method::GET, "registered-models/get").query(&[("name", name)]);
        match self.ask::<Reply>(request, &format!("show `{name}`")).await {
            Ok(reply) => Ok(reply.registered_model.tags.into_iter().map(|tag| (tag.key, tag.value)).collect()),
            Err(RegistryError::Refused { status: 404, .. }) => Err(RegistryError::NotFound(name.to_owned())),
            Err(error) => Err(error),
        }
    }

    /// Sets a tag of a model, of at most [`MAX_MODEL_TAG_BYTES`] bytes.
    pub async fn set_model_tag(&self, name: &str, key: &str, value: &str) -> Result<(), RegistryError> {
        let (found, limit) = (value.len(), MAX_MODEL_TAG_BYTES);
        if found > limit {
            return Err(RegistryError::LongTag { name: name.to_owned(), key: key.to_owned(), found, limit });
        }
        self.write_model_tag(name, key, value, &format!("tag `{name}`")).await
    }

    pub(super) async fn write_model_tag(
        &self,
        name: &str,
        key: &str,
        value: &str,
        asked: &str,
    ) -> Result<(), RegistryError> {
        let body = json!({ "name": name, "key": key, "value": value });
        let request = self.mlflow(Method::POST, "registered-models/set-tag").json(&body);
        self.ask::<Value>(request, asked).await.map(drop)
    }

    /// Takes a tag off a model; one that is not there is fine.
    pub async fn delete_model_tag(&self, name: &str, key: &str) -> Result<(), RegistryError> {
        let request =
            self.mlflow(Method::DELETE, "registered-models/delete-tag").json(&json!({ "name": name, "key": key }));
        match self.ask::<Value>(request, &format!("untag `{name}`")).await {
            Err(RegistryError::Refused { status: 404, .. }) => Ok(()),
            done => done.map(drop),
        }
    }

    /// Sets tags of a version.
    pub async fn tag_version(
        &self,
        version: &ResolvedVersion,
        tags: &BTreeMap<String, String>,
    ) -> Result<(), RegistryError> {
        for (key, value) in tags {
            self.set_version_tag(&version.name, version.version, key, value).await?;
        }
        Ok(())
    }
}

impl From<Model> for RegisteredModel {
    fn from(model: Model) -> Self {
        let alias = |alias: Alias| Some((alias.alias, alias.version.parse().ok()?));
        Self {
            name: model.name,
            aliases: model.aliases.into_iter().filter_map(alias).collect(),
            newest: model.latest_versions.iter().map(Version::number).max(),
            tags: model.tags.into_iter().map(|tag| (tag.key, tag.value)).collect(),
        }
    }
}
