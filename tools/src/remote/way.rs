//! How a command reaches mgmt: its API over HTTPS with a token, from any host, or the same API over the control socket, for the user who
//! runs mgmt on this host.

use super::cli::WayArgs;
use super::https;
use crate::data;
use crate::problem::Problem;
use afterimage_mgmt::api::client::{ApiClient, ApiError};
use afterimage_mgmt::api::types::ProblemBody;
use afterimage_mgmt::client::{ClientError, ControlClient};
use afterimage_mgmt::protocol::{ApiCall, ApiReply};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// See the module.
#[derive(Debug)]
pub enum Way {
    /// From any host.
    Https(ApiClient),
    /// On mgmt's own host: its data folder.
    Here(PathBuf),
}

impl Way {
    /// As flags, environment and file say. What names mgmt's address or a token means HTTPS; else it is the data folder.
    ///
    /// # Errors
    /// If something that was said makes no sense, or nothing was.
    pub fn of(args: &WayArgs) -> Result<Way, Problem> {
        if let Some(data) = &args.data {
            return Ok(Way::Here(data.clone()));
        }
        if let Some(client) = https(args)? {
            return Ok(Way::Https(client));
        }
        let folder = data::default_path()?;
        if folder.join("control.sock").exists() {
            return Ok(Way::Here(folder));
        }
        Err(Problem::usage(
            "where is mgmt? Say it with --mgmt HOST[:PORT] and a token, $AFTERIMAGE_MGMT and $AFTERIMAGE_API_TOKEN, or mgmt.toml; on \
             mgmt's own host, --data with its data folder is enough",
        ))
    }

    /// Looks.
    ///
    /// # Errors
    /// As [`ApiError`] says.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        self.call("GET", path, None::<&()>)
    }

    /// Asks with a body, and reads the answer. One without a body is read as `null`.
    ///
    /// # Errors
    /// As [`ApiError`] says.
    pub fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&B>,
    ) -> Result<T, ApiError> {
        let data = match self {
            Way::Https(client) => return client.call(method, path, body),
            Way::Here(data) => data,
        };
        let bad = |e: serde_json::Error| ApiError::Answer(data.display().to_string(), e.to_string());
        let body = body.map(serde_json::to_value).transpose().map_err(bad)?;
        let call = ApiCall { method: method.to_owned(), path: path.to_owned(), body };
        let ApiReply { status, body } = here(data, call).map_err(ApiError::Here)?;
        if (200..300).contains(&status) {
            return serde_json::from_value(body).map_err(bad);
        }
        Err(ApiError::Refused(Box::new(serde_json::from_value::<ProblemBody>(body).map_err(bad)?)))
    }

    /// Has something removed.
    ///
    /// # Errors
    /// As [`ApiError`] says.
    pub fn delete(&self, path: &str) -> Result<(), ApiError> {
        self.call::<(), Option<serde_json::Value>>("DELETE", path, None).map(drop)
    }
}

fn here(data: &Path, call: ApiCall) -> Result<ApiReply, ClientError> {
    ControlClient::connect(data)?.mgmt(call)
}
