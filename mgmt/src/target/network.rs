//! What a machine's card is connected to here, and with which addresses.
//!
//! A machine names the networks of the place it comes from. Each is mapped to a network of this host, once for a failover and
//! once for a test, which is on its own unless the file says something else:
//!
//! | target | the guest |
//! |---|---|
//! | `bridge:NAME` | is in the network of that bridge (QEMU's bridge helper makes the connection) |
//! | `user` | reaches what this host reaches; nobody reaches it but through ports of this host's loopback |
//! | `isolated` | reaches nobody; checks still reach it, through ports of this host's loopback |
//!
//! A guest with a fixed address (`address = "192.168.7.15/24"`) finds the network that it expects also in `user` and `isolated`: QEMU
//! builds it around that address. Without one it asks DHCP.

use crate::target::machine::is_word;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// Text that is no target, no MAC, no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not a target.
    #[error("'{0}' is no network of this host: write bridge:NAME, user or isolated")]
    Target(String),
    /// Not a card's address.
    #[error("'{0}' is no MAC address of a single card: write it as 52:54:00:12:34:56")]
    Mac(String),
    /// Not an address with its network.
    #[error("'{0}' is no IPv4 address with the length of its network (8 to 30): write it as 192.168.7.15/24")]
    Address(String),
}

macro_rules! as_text {
    ($t:ty) => {
        impl Serialize for $t {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?.parse().map_err(de::Error::custom)
            }
        }
    };
}

/// A network of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Target {
    /// Of its own, with no way out.
    #[default]
    Isolated,
    /// Through this host, as one of its programs.
    User,
    /// A bridge.
    Bridge(String),
}

as_text!(Target);

impl FromStr for Target {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        match (text, text.strip_prefix("bridge:")) {
            ("isolated", _) => Ok(Target::Isolated),
            ("user", _) => Ok(Target::User),
            // The kernel takes 15 bytes.
            (_, Some(name)) if is_word(name, 15) => Ok(Target::Bridge(name.to_owned())),
            _ => Err(NetworkError::Target(text.to_owned())),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Isolated => f.write_str("isolated"),
            Target::User => f.write_str("user"),
            Target::Bridge(name) => write!(f, "bridge:{name}"),
        }
    }
}

/// A card's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

as_text!(Mac);

impl FromStr for Mac {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let bad = || NetworkError::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or_else(bad)?;
        }
        // The lowest bit of the first byte says: a group of cards.
        if parts.next().is_some() || bytes[0] & 1 == 1 || bytes == [0; 6] { Err(bad()) } else { Ok(Mac(bytes)) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An IPv4 address and the length of its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// The guest's.
    pub ip: Ipv4Addr,
    /// Leading bits that all of its network share.
    pub bits: u8,
}

as_text!(Address);

impl Address {
    fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.bits))
    }

    /// The first address of the network.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.ip) & self.mask())
    }

    /// Whether the other one is in this network.
    #[must_use]
    pub fn contains(self, other: Ipv4Addr) -> bool {
        u32::from(other) & self.mask() == u32::from(self.network())
    }

    /// The n-th address of the network that is not the guest's.
    fn other(self, n: u32) -> Ipv4Addr {
        let own = u32::from(self.ip) - u32::from(self.network());
        Ipv4Addr::from(u32::from(self.network()) + if own <= n { n + 1 } else { n })
    }
}

impl FromStr for Address {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let bad = || NetworkError::Address(text.to_owned());
        let (ip, bits) = text.split_once('/').ok_or_else(bad)?;
        let address = Address { ip: ip.parse().map_err(|_| bad())?, bits: bits.parse().map_err(|_| bad())? };
        // Smaller networks have no room for a gateway, a name server and the guest.
        let fits = (8..=29).contains(&address.bits);
        let inside = fits && address.ip != address.network() && u32::from(address.ip) | address.mask() != u32::MAX;
        if inside { Ok(address) } else { Err(bad()) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.bits)
    }
}

/// A network of the place that the machine comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Network {
    /// Its name.
    pub name: String,
    /// What stands for it here after a failover.
    #[serde(default)]
    pub target: Target,
    /// What stands for it here in a test.
    #[serde(default)]
    pub test: Target,
}

/// Which MAC a card gets here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MacPolicy {
    /// The same; a new one in a test on a bridge, where the machine itself may be.
    #[default]
    Keep,
    /// A new one for each start.
    New,
}

/// What card it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CardModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel's e1000e: any guest has the driver.
    E1000e,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Card {
    /// The network at the source.
    pub network: String,
    /// Its MAC at the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Which one it gets.
    #[serde(default)]
    pub mac_policy: MacPolicy,
    /// The guest's fixed address; DHCP without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// The router that the guest expects, for a fixed address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Ipv4Addr>,
    /// What card it is.
    #[serde(default)]
    pub model: CardModel,
}

/// What a machine is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// To go on with production.
    Failover,
    /// To see that it could.
    Test,
}

impl Card {
    /// What it is connected to.
    #[must_use]
    pub fn target(&self, networks: &[Network], purpose: Purpose) -> Target {
        let network = networks.iter().find(|n| n.name == self.network);
        network.map_or(Target::Isolated, |n| if purpose == Purpose::Test { n.test.clone() } else { n.target.clone() })
    }

    /// The MAC that it gets; `seed` is another one for each start.
    #[must_use]
    pub fn mac_here(&self, target: &Target, purpose: Purpose, seed: u32) -> Mac {
        let beside = purpose == Purpose::Test && matches!(target, Target::Bridge(_));
        match self.mac {
            Some(mac) if self.mac_policy == MacPolicy::Keep && !beside => mac,
            _ => {
                let [_, b, c, d] = seed.to_be_bytes();
                // The range that QEMU's own cards are in.
                Mac([0x52, 0x54, 0x00, b, c, d])
            }
        }
    }

    /// The value of QEMU's `-netdev`; `ports` of the guest are reached through ports of the loopback that QEMU chooses.
    #[must_use]
    pub fn netdev(&self, id: &str, target: &Target, ports: &[u16]) -> String {
        let restrict = match target {
            Target::Bridge(name) => return format!("bridge,id={id},br={name}"),
            Target::Isolated => ",restrict=on",
            Target::User => "",
        };
        let mut text = format!("user,id={id}{restrict},ipv6=off");
        let mut guest = Ipv4Addr::new(10, 0, 2, 15);
        if let Some(address) = self.address {
            guest = address.ip;
            let host = self.gateway.unwrap_or_else(|| address.other(1));
            let mut free = (1..=4).map(|n| address.other(n)).filter(|a| *a != host);
            let (dns, network) = (free.next().unwrap_or(host), address.network());
            // What DHCP would give is not the guest's business, but QEMU wants it inside the network.
            text.push_str(&format!(",net={network}/{},host={host},dns={dns},dhcpstart={guest}", address.bits));
        }
        for port in ports {
            text.push_str(&format!(",hostfwd=tcp:127.0.0.1:0-{guest}:{port}"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(address: Option<&str>) -> Card {
        Card {
            network: "lan".to_owned(),
            mac: Some(Mac([0x52, 0x54, 0, 1, 2, 3])),
            mac_policy: MacPolicy::Keep,
            address: address.map(|a| a.parse().unwrap()),
            gateway: None,
            model: CardModel::Virtio,
        }
    }

    #[test]
    fn texts_are_read_and_nonsense_is_refused() {
        for text in ["isolated", "user", "bridge:br0"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for bad in ["", "bridge:", "bridge:a b", "bridge:br0,script=x", "bridge:abcdefghijklmnop", "nat"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
        assert_eq!("52:54:00:aB:00:01".parse::<Mac>().unwrap().to_string(), "52:54:00:ab:00:01");
        for bad in
            ["", "52:54:00:12:34", "53:54:00:12:34:56", "00:00:00:00:00:00", "52:54:00:12:34:56:78", "5:+4:0:1:2:3"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        for bad in ["10.0.0.1", "10.0.0.0/8", "10.0.0.1/33", "10.0.0.1/31", "10.255.255.255/8", "x/8", "10.0.0.1/-1"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_test_is_isolated_unless_somebody_says_otherwise() {
        let networks =
            [Network { name: "lan".to_owned(), target: Target::Bridge("br0".to_owned()), test: Target::default() }];
        assert_eq!(card(None).target(&networks, Purpose::Test), Target::Isolated);
        assert_eq!(card(None).target(&networks, Purpose::Failover), Target::Bridge("br0".to_owned()));
        assert_eq!(card(None).target(&[], Purpose::Failover), Target::Isolated);
    }

    #[test]
    fn a_test_beside_the_machine_itself_has_another_mac() {
        let (card, bridge) = (card(None), Target::Bridge("br0".to_owned()));
        assert_eq!(card.mac_here(&bridge, Purpose::Failover, 7), card.mac.unwrap());
        assert_eq!(card.mac_here(&Target::Isolated, Purpose::Test, 7), card.mac.unwrap());
        assert_eq!(card.mac_here(&bridge, Purpose::Test, 7).to_string(), "52:54:00:00:00:07");
    }

    #[test]
    fn a_network_is_built_around_a_fixed_address() {
        let line = card(Some("192.168.7.1/24")).netdev("net0", &Target::Isolated, &[22]);
        assert_eq!(
            line,
            "user,id=net0,restrict=on,ipv6=off,net=192.168.7.0/24,host=192.168.7.2,dns=192.168.7.3,\
             dhcpstart=192.168.7.1,hostfwd=tcp:127.0.0.1:0-192.168.7.1:22"
        );
        assert_eq!(card(None).netdev("n", &Target::User, &[]), "user,id=n,ipv6=off");
        assert_eq!(card(None).netdev("n", &Target::Bridge("br0".to_owned()), &[1]), "bridge,id=n,br=br0");
    }
}
