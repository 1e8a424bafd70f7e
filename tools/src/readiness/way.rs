//! The way to the appliance, measured: whether it answers, and how fast bytes get there.
//!
//! A connection of its own speaks [`afterimage_trust::probe`], which takes bytes and throws them away. It is made with the agent's
//! certificate, as any other; the streams of volumes go on beside it.

use crate::duty::Appliance;
use afterimage_mgmt::members::Way;
use afterimage_trust::probe;
use std::time::Instant;

pub(super) fn measure(appliance: &Appliance) -> Way {
    let mut way = Way { address: appliance.endpoint.to_string(), ..Way::default() };
    let ms = |since: Instant| u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
    let began = Instant::now();
    match &appliance.trust {
        Err(e) => {
            match appliance.endpoint.connect(false) {
                Ok(_) => way.connect_ms = Some(ms(began)),
                Err(e) => way.error = Some(e.to_string()),
            }
            way.error.get_or_insert_with(|| e.clone());
        }
        Ok(trust) => match probe::Link::open(&trust.0, &appliance.endpoint) {
            Err(e) => way.error = Some(e.to_string()),
            Ok(link) => {
                way.connect_ms = Some(ms(began));
                match link.measure() {
                    Ok(rate) => way.bytes_per_second = Some(rate),
                    Err(e) => way.error = Some(e.to_string()),
                }
            }
        },
    }
    way
}
