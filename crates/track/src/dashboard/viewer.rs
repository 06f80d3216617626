use axum::Json;
use highroad_service::access::{Principal, Scope};
use serde::Serialize;
use utoipa::ToSchema;

/// Who looks at the pages, and what they may do here.
#[derive(Serialize, ToSchema)]
pub struct Viewer {
    /// The name of the key; none where no keys are asked for.
    #[schema(required)]
    key: Option<String>,
    /// `infer`, `observe`, `track`, `deploy`: all where no keys are asked for.
    scopes: Vec<String>,
    /// The members that the key may ask; none for all.
    #[schema(required)]
    members: Option<Vec<String>>,
}

/// Who looks.
#[utoipa::path(get, operation_id = "get_viewer", path = "/viewer", responses((status = OK, body = Viewer)))]
pub async fn get() -> Json<Viewer> {
    let names = |scopes: &mut dyn Iterator<Item = &Scope>| scopes.map(|scope| scope.name().to_owned()).collect();
    Json(match Principal::current() {
        None => Viewer { key: None, scopes: names(&mut Scope::ALL.iter()), members: None },
        Some(principal) => Viewer {
            scopes: names(&mut principal.scopes().iter()),
            members: principal.members().map(|members| members.iter().cloned().collect()),
            key: Some(principal.key),
        },
    })
}
