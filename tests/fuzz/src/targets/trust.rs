//! What mgmt, agents and appliances read of somebody whom they do not know yet.

use super::formats::same;
use crate::input::Input;
use afterimage_format::coord::group::{Held, Named, NotHeld, Prepare, Released, Settled};
use afterimage_format::coord::{
    HEADER_LEN, Header, Hello, Join, Joined, Kind, MAX_BODY, Refuse, Revocations, Welcome, message,
};
use afterimage_trust::identity::{Claims, Identity};
use afterimage_trust::token::Token;

/// Messages of the coordination port.
pub(super) fn coord(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let head = input.array::<HEADER_LEN>();
    let body = input.rest();
    let Ok(header) = Header::decode(&head, MAX_BODY) else { return };
    assert!(header.len <= MAX_BODY);
    assert_eq!(message(header.kind, body)[..2], head[..2], "what is understood comes back the same");
    match header.kind {
        Kind::Hello => same(Hello::decode(body), |m| Hello::decode(&m.encode())),
        Kind::Welcome => same(Welcome::decode(body), |m| Welcome::decode(&m.encode())),
        Kind::Revocations => same(Revocations::decode(body), |m| Revocations::decode(&m.encode())),
        Kind::Join => same(Join::decode(body), |m| Join::decode(&m.encode())),
        Kind::Joined => same(Joined::decode(body), |m| Joined::decode(&m.encode())),
        Kind::Refuse => same(Refuse::decode(body), |m| Refuse::decode(&m.encode())),
        Kind::Prepare => same(Prepare::decode(body), |m| Prepare::decode(&m.encode())),
        Kind::Held | Kind::Watch => same(Held::decode(body), |m| Held::decode(&m.encode())),
        Kind::NotHeld => same(NotHeld::decode(body), |m| NotHeld::decode(&m.encode())),
        Kind::Release => same(Named::decode(body), |m| Named::decode(&m.encode())),
        Kind::Released => same(Released::decode(body), |m| Released::decode(&m.encode())),
        Kind::Settled => same(Settled::decode(body), |m| Settled::decode(&m.encode())),
        _ => {}
    }
}

/// Certificates before anybody has looked at their signature; identities and tokens.
pub(super) fn certificate(bytes: &[u8]) {
    if let Some(claims) = Claims::of(bytes) {
        assert!(claims.name.len() <= 400 && !claims.to_string().contains('\n'), "nobody writes lines into the log");
        if let Some(identity) = claims.identity {
            assert_eq!(Identity::parse(&identity.uri()), Some(identity));
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Some(identity) = Identity::parse(text) {
        assert_eq!(identity.uri(), text);
    }
    if let Ok(token) = text.parse::<Token>() {
        assert_eq!(token.text().parse(), Ok(token));
    }
}
