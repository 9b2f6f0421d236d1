//! The secrets of a manifest: by name, and where the program finds them.

use limpet_protocol::{SecretName, SecretPlace, SecretUse};

use super::reader::{Item, Reader};
use super::{Texts, quoted};

/// Secrets of one deployment at most: more would hardly fit on the wire.
const SECRETS_MAX: usize = 32;
/// Where a secret is unless its manifest says otherwise, as Docker and Compose have it.
const FOLDER: &str = "/run/secrets";
/// What the runtime itself mounts.
const TAKEN: [&str; 6] =
    ["/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// Reads the field `secrets`; `env` is what variables the manifest has besides.
pub(super) fn secrets(reader: &mut Reader<'_>, env: &Texts) -> Vec<SecretUse> {
    let mut found: Vec<SecretUse> = Vec::new();
    let read = |item: Item<'_, '_>| {
        let Some(secret) = (match item {
            Item::Word(word) => Some(of(word.parse().map_err(|e| format!("{e}"))?, None)),
            Item::Fields(fields) => one(fields),
        }) else {
            return Ok(());
        };
        if let SecretPlace::Env(key) = &secret.place
            && env.contains_key(key)
        {
            return Err(format!("`env` has the variable {} already: keep one", quoted(key)));
        }
        if let Some(other) = found.iter().find(|other| overlap(&other.place, &secret.place)) {
            let (shown, other) = (shown(&secret.place), &other.name);
            return Err(format!("{shown} is taken by the secret {other}"));
        }
        found.push(secret);
        Ok(())
    };
    reader.each("secrets", SECRETS_MAX, read);
    found
}

fn of(name: SecretName, place: Option<SecretPlace>) -> SecretUse {
    let place = place.unwrap_or_else(|| SecretPlace::File(format!("{FOLDER}/{name}")));
    SecretUse { name, version: SecretUse::LATEST, place }
}

fn one(reader: &mut Reader<'_>) -> Option<SecretUse> {
    let name = reader.parsed::<SecretName>("name");
    if reader.node("name").is_none() {
        reader.fault("name", "is missing: say which secret".to_owned());
    }
    let file = reader.scalar("file");
    let env = reader.scalar("env");
    let place = match (file, env) {
        (Some(_), Some(_)) => {
            let why = "says where, but so does `file`: keep one, or list the secret twice";
            reader.fault("env", why.to_owned());
            return None;
        }
        (Some(path), None) => {
            if let Err(why) = check_path(&path) {
                reader.fault("file", why);
                return None;
            }
            Some(SecretPlace::File(path))
        }
        (None, Some(key)) => {
            if key.is_empty() || key.contains('=') {
                reader.fault("env", "a variable's name is not empty and has no '='".to_owned());
                return None;
            }
            Some(SecretPlace::Env(key))
        }
        (None, None) => None,
    };
    Some(of(name?, place))
}

fn check_path(path: &str) -> Result<(), String> {
    let clean = path.strip_prefix('/').is_some_and(|rest| {
        rest.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
    });
    if !clean {
        return Err(format!("must be the absolute path of a file, is {}", quoted(path)));
    }
    match TAKEN.iter().find(|taken| is_within(path, taken)) {
        Some(taken) => {
            Err(format!("{taken} is the runtime's: use another place, such as {FOLDER}"))
        }
        None => Ok(()),
    }
}

fn is_within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether one would cover the other.
fn overlap(a: &SecretPlace, b: &SecretPlace) -> bool {
    match (a, b) {
        (SecretPlace::File(a), SecretPlace::File(b)) => is_within(a, b) || is_within(b, a),
        (SecretPlace::Env(a), SecretPlace::Env(b)) => a == b,
        (SecretPlace::File(_), SecretPlace::Env(_))
        | (SecretPlace::Env(_), SecretPlace::File(_)) => false,
    }
}

fn shown(place: &SecretPlace) -> String {
    match place {
        SecretPlace::File(path) => quoted(path),
        SecretPlace::Env(key) => format!("the variable {}", quoted(key)),
    }
}
