//! `afterimage agent join` and `appliance join`: a host gets its certificate.

use crate::cli::JoinArgs;
use crate::data::DataDir;
use crate::problem::Problem;
use crate::show::put;
use afterimage_trust::folder;
use afterimage_trust::identity::{Claims, Role};
use afterimage_trust::join::{Wish, join};
use afterimage_trust::token::Token;
use std::io::Read;
use std::path::Path;

/// The variable in which a token may be given.
const VARIABLE: &str = "AFTERIMAGE_TOKEN";

/// Longest text that is read as a token.
const LONGEST: u64 = 4096;

fn read(path: &Path) -> Result<String, Problem> {
    let mut text = String::new();
    let result = if path == Path::new("-") {
        std::io::stdin().lock().take(LONGEST).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(LONGEST).read_to_string(&mut text))
    };
    result.map_err(|e| Problem::file(path, &e))?;
    Ok(text)
}

fn token(args: &JoinArgs) -> Result<Token, Problem> {
    let text = match (&args.token, &args.token_file, std::env::var(VARIABLE)) {
        (Some(text), ..) => text.clone(),
        (None, Some(path), _) => read(path)?,
        (None, None, Ok(text)) => text,
        (None, None, Err(_)) => {
            return Err(Problem::usage(format!(
                "joining takes a token: --token-file FILE (- for standard input), ${VARIABLE}, or --token TOKEN, which others on \
                 this host may see"
            )));
        }
    };
    text.parse().map_err(|e: afterimage_trust::token::BadToken| Problem::usage(e.to_string()))
}

/// Joins.
///
/// # Errors
/// If the folder is in use or has joined already, or mgmt refuses.
pub fn run(args: &JoinArgs, role: Role) -> Result<(), Problem> {
    let token = token(args)?;
    let data = DataDir::create(&args.data.folder()?)?;
    let failed = |e: afterimage_trust::TrustError| Problem::failed(e.to_string());
    match folder::load(&folder::of(data.path())) {
        Ok(Some(there)) if !args.again => {
            return Err(Problem::failed(format!(
                "{} has joined as {} '{}' already: --again lets it join anew",
                data.path().display(),
                there.identity,
                there.name
            )));
        }
        Ok(Some(there)) => folder::expect_role(&there, role).map_err(failed)?,
        Ok(None) => {}
        Err(e) if !args.again => return Err(failed(e)),
        Err(_) => {}
    }
    let host = nix::unistd::gethostname().map_or_else(|_| "host".into(), |h| h.to_string_lossy().into_owned());
    let joined = join(data.path(), &Wish { mgmt: &args.mgmt, token: &token, role, host: &host }).map_err(failed)?;
    let until = Claims::of(&joined.certificate).map_or(0, |c| c.not_after);
    let until = afterimage_mgmt::units::Time(u64::try_from(until).unwrap_or(0).saturating_mul(1_000_000_000)).short();
    put(&format!(
        "joined {} as {role} '{}', id {}\nthe certificate lasts until {until} and is renewed by itself while the {role} runs\n",
        joined.mgmt, joined.name, joined.identity.id
    ))
}
