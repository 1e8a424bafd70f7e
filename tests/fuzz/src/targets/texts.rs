//! What users and configurations write: moments, sizes, addresses. What is understood can be written and is understood again.

use afterimage_mgmt::units::{format_duration, format_size, parse_duration, parse_size};
use afterimage_mgmt::when::{When, check_point_name};
use afterimage_nbd::Address;
use afterimage_nbd::client::Uri;
use std::fmt::{Debug, Display};
use std::str::FromStr;

/// See the module.
pub(super) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    again::<When>(text);
    again::<Address>(text);
    drop(check_point_name(text));
    if let Ok(size) = parse_size(text) {
        assert!(parse_size(&format_size(size)).is_ok());
    }
    if let Ok(duration) = parse_duration(text) {
        assert!(parse_duration(&format_duration(duration)).is_ok());
    }
    drop(text.parse::<Uri>());
}

fn again<T: FromStr + Display + PartialEq + Debug>(text: &str) {
    if let Ok(found) = text.parse::<T>() {
        let written = found.to_string();
        assert!(
            written.parse::<T>().is_ok_and(|t| t == found),
            "{text:?} is read as {found:?} and written as {written:?}"
        );
    }
}
