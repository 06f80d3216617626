//! `/v1/similarity`: how alike pairs of texts are.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use axum::routing::post;

use super::{App, Asker, Failed, Routes, Wanted, embeds, openai_method, openai_response};
use crate::protocol::openai::Refused;
use crate::protocol::similarity::{SimilarityRequest, cosines, of_pairs};
use crate::revision::Terms;

pub(super) fn routes() -> Routes {
    Routes::default().post("/v1/similarity", post(similarity).fallback(openai_method))
}

async fn similarity(State(app): State<App>, asker: Asker, body: Result<Bytes, BytesRejection>) -> Response {
    let refused = |failed| match failed {
        Failed::Ask(error) => Refused::from(error),
        Failed::Said(problem) => Refused::from(problem),
    };
    openai_response(app.similarity(&asker, body).await.map_err(refused))
}

impl App {
    async fn similarity(&self, asker: &Asker, body: Result<Bytes, BytesRejection>) -> Result<Response, Failed> {
        let bytes = self.whole(body)?;
        let request =
            SimilarityRequest::parse(&bytes).inspect_err(|problem| self.malformed(None, &bytes, &problem.message))?;
        let member = match &request.model {
            Some(model) => model.clone(),
            None => self.only("embeds", embeds)?,
        };
        let (inputs, places) = request.pairs.texts();
        let terms = Terms { cut: request.cut, ..Terms::default() };
        let wanted = Wanted { inputs, terms, dimensions: None };
        let embedded = self.embed(asker, "/v1/similarity", &member, wanted).await;
        let embedded = embedded.map_err(|error| of_pairs(error, &places))?;
        let cosines = cosines(&places, &embedded.asked.answers);
        let name = &embedded.call.revision.facts().member;
        let body = SimilarityRequest::reply(&asker.id.0, name, &cosines, embedded.n_tokens());
        Ok(self.answer(&embedded.call, &embedded.asked, "application/json", body))
    }
}
