//! What a person carries from the controller to a device or to a command line: one line of text.

use std::fmt;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteArray;

use crate::cbor;
use crate::id::{Digest, IdError, byte_id};
use crate::key::KeyError;

/// Bytes of an invitation at most, as text.
const TEXT_BYTES_MAX: usize = 2048;
/// Addresses in an invitation at most.
const SERVERS_MAX: usize = 8;

byte_id!(
    /// Names a token; not a secret.
    TokenId, 8
);

/// A secret that opens something to whoever has it: 256 random bits, and the name of their record.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Which record it is checked against.
    #[serde(rename = "i")]
    pub id: TokenId,
    /// The secret.
    #[serde(rename = "s")]
    pub secret: ByteArray<32>,
}

/// What an invitation is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A device joins a fleet: `limpet-agent join`.
    Join,
    /// A person's command line reaches a controller: `limpet login`.
    Login,
}

/// Where a controller is, how it is known, and a token for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invitation {
    /// What it is for.
    pub purpose: Purpose,
    /// Its API, `HOST:PORT`; the first that answers is used.
    pub servers: Vec<String>,
    /// SHA-256 of the certificate (DER) of the authority that its certificate must come from.
    pub pin: Digest,
    /// What it lets in with.
    pub token: Token,
}

/// Why a text is no invitation or token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// An invitation for something else.
    #[error("this string is for `{}`, not for `{}`", actual.verb(), expected.verb())]
    Purpose {
        /// What it is for.
        actual: Purpose,
        /// What it was given to.
        expected: Purpose,
    },
    /// No invitation.
    #[error("this is no string of `{}`: copy the whole line, from {} on", .0.maker(), .0.prefix())]
    Damaged(Purpose),
    /// No token.
    #[error("this is no token of `limpet token create`: it begins with {TOKEN_PREFIX}")]
    Token,
}

const TOKEN_PREFIX: &str = "limpet_";

impl Token {
    /// A new one.
    ///
    /// # Errors
    /// When the system gives no random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        let (mut id, mut secret) = ([0; 8], [0; 32]);
        let random = SystemRandom::new();
        random.fill(&mut id).map_err(|_| KeyError::NoRandomness)?;
        random.fill(&mut secret).map_err(|_| KeyError::NoRandomness)?;
        Ok(Self { id: TokenId(id), secret: ByteArray::new(secret) })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

/// The secret, as text: 54 characters behind `limpet_`.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [self.id.0.as_slice(), self.secret.as_slice()].concat();
        write!(f, "{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for Token {
    type Err = InvitationError;

    fn from_str(text: &str) -> Result<Self, InvitationError> {
        let read = || {
            let coded = text.trim().strip_prefix(TOKEN_PREFIX).filter(|coded| coded.len() == 54)?;
            let bytes: [u8; 40] = URL_SAFE_NO_PAD.decode(coded).ok()?.try_into().ok()?;
            let (id, secret) = bytes.split_first_chunk::<8>()?;
            Some(Self { id: TokenId(*id), secret: ByteArray::new(secret.try_into().ok()?) })
        };
        read().ok_or(InvitationError::Token)
    }
}

impl Purpose {
    fn prefix(self) -> &'static str {
        match self {
            Self::Join => "limpet-join-",
            Self::Login => "limpet-login-",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Join => "limpet-agent join",
            Self::Login => "limpet login",
        }
    }

    fn maker(self) -> &'static str {
        match self {
            Self::Join => "limpet token create --join",
            Self::Login => "limpet token create",
        }
    }
}

/// What an invitation's text holds, in CBOR.
#[derive(Serialize, Deserialize)]
struct Coded {
    #[serde(rename = "a")]
    servers: Vec<String>,
    #[serde(rename = "p")]
    pin: Digest,
    #[serde(rename = "t")]
    token: Token,
}

impl Invitation {
    /// Reads an invitation for a purpose.
    ///
    /// # Errors
    /// When the text is none, or one for another purpose.
    pub fn parse(text: &str, expected: Purpose) -> Result<Self, InvitationError> {
        let text = text.trim();
        let damaged = || InvitationError::Damaged(expected);
        let other = match expected {
            Purpose::Join => Purpose::Login,
            Purpose::Login => Purpose::Join,
        };
        if text.starts_with(other.prefix()) {
            return Err(InvitationError::Purpose { actual: other, expected });
        }
        let coded = text.strip_prefix(expected.prefix()).ok_or_else(damaged)?;
        if coded.len() > TEXT_BYTES_MAX {
            return Err(damaged());
        }
        let bytes = URL_SAFE_NO_PAD.decode(coded).map_err(|_| damaged())?;
        let Coded { servers, pin, token } =
            cbor::decode(&bytes, TEXT_BYTES_MAX).map_err(|_| damaged())?;
        if servers.is_empty() || servers.len() > SERVERS_MAX {
            return Err(damaged());
        }
        Ok(Self { purpose: expected, servers, pin, token })
    }
}

impl fmt::Display for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { purpose, servers, pin, token } = self;
        let coded = Coded { servers: servers.clone(), pin: *pin, token: token.clone() };
        write!(f, "{}{}", purpose.prefix(), URL_SAFE_NO_PAD.encode(cbor::encode(&coded)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invitation(purpose: Purpose) -> Invitation {
        Invitation {
            purpose,
            servers: vec!["limpet.example:8420".to_owned()],
            pin: Digest([7; 32]),
            token: Token { id: TokenId([1; 8]), secret: ByteArray::new([2; 32]) },
        }
    }

    #[test]
    fn invitations_and_tokens_read_back() {
        for purpose in [Purpose::Join, Purpose::Login] {
            let text = invitation(purpose).to_string();
            let read = Invitation::parse(&format!("  {text}\n"), purpose);
            assert_eq!(read, Ok(invitation(purpose)));
        }
        let token = Token::generate().unwrap();
        assert_eq!(token.to_string().parse(), Ok(token));
    }

    #[test]
    fn what_is_no_invitation_says_what_was_expected() {
        let login = invitation(Purpose::Login).to_string();
        let join = invitation(Purpose::Join).to_string();
        let why = |text: &str| Invitation::parse(text, Purpose::Join).unwrap_err().to_string();
        expect_test::expect!["this string is for `limpet login`, not for `limpet-agent join`"]
            .assert_eq(&why(&login));
        for text in ["", "limpet-join-", "hello", &join[..join.len() - 3], &format!("{join}A")] {
            assert_eq!(
                why(text),
                "this is no string of `limpet token create --join`: copy the whole line, from \
                 limpet-join- on",
                "{text}"
            );
        }
        for text in ["", "limpet_", &login, &format!("limpet_{}", "A".repeat(53))] {
            assert_eq!(text.parse::<Token>(), Err(InvitationError::Token), "{text}");
        }
    }

    #[test]
    fn a_token_is_not_in_debug_output() {
        let shown = format!("{:?}", invitation(Purpose::Join));
        assert!(shown.contains("0101010101010101") && !shown.contains("2, 2"), "{shown}");
    }
}
