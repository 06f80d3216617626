//! `/v1/recommend`: what somebody wants next, after a history of items.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use axum::routing::post;
use highroad_task::Input;

use super::{App, Asker, Call, Failed, Routes, openai_method, openai_response, recommends, wrong_task};
use crate::protocol::openai::Refused;
use crate::protocol::recommend::RecommendRequest;
use crate::revision::Terms;

pub(super) fn routes() -> Routes {
    Routes::default().post("/v1/recommend", post(recommend).fallback(openai_method))
}

async fn recommend(State(app): State<App>, asker: Asker, body: Result<Bytes, BytesRejection>) -> Response {
    openai_response(app.recommend(&asker, body).await.map_err(|failed| Refused::from(failed.problem())))
}

impl App {
    async fn recommend(&self, asker: &Asker, body: Result<Bytes, BytesRejection>) -> Result<Response, Failed> {
        let request = RecommendRequest::parse(&self.whole(body)?)?;
        let member = match &request.model {
            Some(model) => model.clone(),
            None => self.only("recommends", recommends)?,
        };
        let assigned = self.assign(&member, asker)?;
        if !recommends(assigned.revision()) {
            return Err(wrong_task(assigned.revision(), "recommendations").into());
        }
        let history = vec![Input::Text(request.text())];
        let served = assigned.ask(history, &self.portfolio.limits(), Terms::default()).await;
        let (call, result) = Call::of(asker, "/v1/recommend", served);
        let asked = call.finish(result)?;
        let body = request.reply(&asker.id.0, call.revision.manifest(), &call.revision.facts().member, &asked.answers);
        Ok(self.answer(&call, &asked, "application/json", body))
    }
}
