//! The targets. To add one: a function here or in a module, a line in [`ALL`], a line in `tests/corpus.rs`, seeds in
//! [`seeds`](crate::seeds).
//!
//! | target | what it feeds | with what |
//! |---|---|---|
//! | `wire`, `record`, `commit`, `manifest`, `segment_parts`, `layer_parts` | decoders | bytes as they are, or with a right checksum; what is understood comes back the same |
//! | `text` | WHEN, sizes, addresses, URIs | text |
//! | `nbd_stream` | NBD server | a connection's bytes as they are |
//! | `nbd_session` | NBD server | options and requests with any fields, in pieces; every reply is checked against a model |
//! | `nbd_client` | NBD client | a server's bytes |
//! | `ring`, `dirty_map`, `intent` | opening and recovery | files of whole and half records and words, then damaged |
//! | `segment` | scan, recovery, directory, reading | sealed frames with any content, then damaged |
//! | `layer` | opening, reading, merging | sealed pages with any content, then damaged |
//! | `vault` | `check`, `dump`, start, reading | a real vault, damaged; what is read is right or an error |
//! | `appliance_session` | the appliance's end of the wire | sessions of any agent; what was durable is right |
//! | `agent_session` | the agent's end of the wire | sessions of any appliance; the guest is served all the same |
//! | `volume_json` | `volume.json` | text |
//! | `control` | control socket | lines |
//! | `coord` | messages of the coordination port | bytes as they are; what is understood comes back the same |
//! | `certificate` | certificates before they are believed, identities, tokens | bytes as they are |
//!
//! Messages that machines exchange about consistency barriers get their target when there are such messages.

mod agent_session;
mod appliance_session;
pub mod broken;
mod control;
mod dirty_map;
mod formats;
mod intent;
mod layer;
mod layer_parts;
mod nbd;
mod nbd_session;
mod ring;
mod segment;
mod texts;
mod trust;
mod vault;
mod volume_json;
mod wires;

use crate::Target;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

const fn target(name: &'static str, run: fn(&[u8]), memory: usize, longest: usize) -> Target {
    Target { name, run, memory, longest }
}

/// All of them.
pub const ALL: &[Target] = &[
    target("wire", formats::wire, MIB, 2 * KIB),
    target("record", formats::record, MIB, 128),
    target("commit", formats::commit, 8 * MIB, 4 * KIB),
    target("manifest", formats::manifest, 8 * MIB, 4 * KIB),
    target("segment_parts", formats::segment_parts, 8 * MIB, 4 * KIB),
    target("layer_parts", layer_parts::run, 8 * MIB, 4 * KIB),
    target("text", texts::run, MIB, 512),
    target("nbd_stream", nbd::stream, 80 * MIB, 4 * KIB),
    target("nbd_session", nbd_session::run, 16 * MIB, KIB),
    target("nbd_client", nbd::client, 80 * MIB, 4 * KIB),
    target("ring", ring::run, 8 * MIB, 2 * KIB),
    target("dirty_map", dirty_map::run, 8 * MIB, KIB),
    target("intent", intent::run, 8 * MIB, KIB),
    target("segment", segment::run, 16 * MIB, KIB),
    target("layer", layer::run, 16 * MIB, 2 * KIB),
    target("vault", vault::run, 64 * MIB, 512),
    target("appliance_session", appliance_session::run, 128 * MIB, KIB),
    target("agent_session", agent_session::run, 64 * MIB, 512),
    target("volume_json", volume_json::run, 4 * MIB, 2 * KIB),
    target("control", control::run, 8 * MIB, 4 * KIB),
    target("coord", trust::coord, 4 * MIB, 4 * KIB),
    target("certificate", trust::certificate, 4 * MIB, 2 * KIB),
];
