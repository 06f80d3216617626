//! Hosted members on the Open Inference Protocol's gRPC.

use std::sync::Arc;

use axum::http::HeaderMap;
use highroad_service::Problem;

use super::answers::{Asker, Tensors};
use super::ask::Declined;
use super::routes::{App, counted};
use crate::portfolio::Portfolio;
use crate::protocol::oip;
use crate::protocol::oip::grpc::proto::{ModelInferRequest, ModelInferResponse};
use crate::protocol::oip::grpc::{infer_request, reply_message, rest_body};
use crate::request_log::RequestLog;

const ROUTE: &str = "/v2/models/infer";

/// The reply of the hosted member that `message` names, with the headers that tell where it comes from; the name of the model of our own
/// that answers instead.
pub(crate) async fn infer(
    portfolio: &Arc<Portfolio>,
    log: &RequestLog,
    id: &str,
    message: &ModelInferRequest,
) -> Result<Result<(ModelInferResponse, HeaderMap), String>, Problem> {
    let app = App { portfolio: Arc::clone(portfolio), log: log.clone() };
    app.infer(id, message).await.map_err(|declined| declined.problem)
}

impl App {
    async fn infer(
        &self,
        id: &str,
        message: &ModelInferRequest,
    ) -> Result<Result<(ModelInferResponse, HeaderMap), String>, Declined> {
        let member = self.portfolio.hosted_member(&message.model_name).map_err(counted)?;
        let asker = Asker { id, part: None, route: ROUTE };
        let (request, form) = infer_request(message.clone())?;
        if request.is_texts() && (member.has_task() || !member.takes_tensors()) {
            let (query, wanted) = request.query(&[])?;
            return Ok(match self.rows(asker, &member, query).await? {
                Ok(told) => {
                    let outputs = oip::task_outputs(&told.task, &told.answers);
                    Ok((wanted.message(form, member.name(), &told.facts, &told.task, outputs)?, told.headers))
                }
                Err((own, _)) => Err(own),
            });
        }
        let (body, json_bytes) = rest_body(message, request);
        Ok(match self.tensors(asker, &member, &body, Some(json_bytes)).await? {
            Ok(Tensors { body, json_bytes, facts, headers }) => {
                Ok((reply_message((&body, json_bytes), form, message, &facts)?, headers))
            }
            Err((own, _)) => Err(own),
        })
    }
}
