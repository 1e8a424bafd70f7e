//! The API for who has access to mgmt's control socket: the same routes, as admin and without a token. So the user who runs mgmt needs
//! none, and makes the first one.

use super::events;
use super::problem::{Kind, Problem};
use super::routes::{Call, Gives, Reply, find, query};
use crate::catalogue::ApiRole;
use crate::office::Office;
use crate::protocol::{ApiCall, ApiReply};
use serde_json::Value;
use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked for events that are waited for.
const LOOK: Duration = Duration::from_millis(50);

/// Does what is asked, for `who`.
#[must_use]
pub fn answer(office: &Office, who: &str, call: &ApiCall) -> ApiReply {
    done(office, who, call).unwrap_or_else(|problem| ApiReply {
        status: problem.status(),
        body: serde_json::to_value(problem.body()).unwrap_or_default(),
    })
}

fn done(office: &Office, who: &str, call: &ApiCall) -> Result<ApiReply, Problem> {
    let (path, text) = call.path.split_once('?').unwrap_or((&call.path, ""));
    let (route, path) = find(&call.method, path)?;
    if route.takes.is_none() && call.body.is_some() {
        return Err(Problem::new(Kind::BadRequest, "this takes no body"));
    }
    let body = call.body.as_ref().map(serde_json::to_vec).transpose()?.unwrap_or_default();
    let (who, query) = (who.to_owned(), query(route, text)?);
    let call = Call { office, who, role: ApiRole::Admin, path, query, body: &body };
    if route.id == "events" {
        wait(&call)?;
    }
    let reply = (route.run)(&call)?;
    let status = match (&reply, route.gives) {
        (Reply::Nothing, _) => 204,
        (_, Gives::Json(status, _)) => status,
        _ => 200,
    };
    let body = match reply {
        Reply::Json(value) => value,
        Reply::Text(text) => Value::String(text),
        Reply::Nothing => Value::Null,
    };
    Ok(ApiReply { status, body })
}

/// For who asks for events and wants to wait: until there is one.
fn wait(call: &Call<'_>) -> Result<(), Problem> {
    let seconds = call.number::<u64>("wait")?.unwrap_or(0).min(events::MAX_WAIT);
    let (after, news) = (events::after(call)?, call.office.catalogue.news());
    let until = Instant::now() + Duration::from_secs(seconds);
    while *news.borrow() <= after && Instant::now() < until {
        thread::sleep(LOOK);
    }
    Ok(())
}
