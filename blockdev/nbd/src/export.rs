//! What a server offers: named devices.

use afterimage_base::block::BlockDevice;
use std::sync::{Arc, PoisonError, RwLock};

/// A device under a name.
#[derive(Clone)]
pub struct Export {
    /// The name clients ask for, at most 4096 bytes.
    pub name: String,
    /// For people; may be empty.
    pub description: String,
    /// The device.
    pub device: Arc<dyn BlockDevice>,
}

impl std::fmt::Debug for Export {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Export({:?})", self.name)
    }
}

/// The exports of a server, asked anew in every handshake.
pub trait Exports: Send + Sync {
    /// The export of this name. The empty name means the default export, if there is one.
    fn find(&self, name: &str) -> Option<Export>;

    /// Names and descriptions of all exports.
    fn list(&self) -> Vec<(String, String)>;
}

/// A list of exports that can change while the server runs. Connections that are already open keep their device.
#[derive(Debug, Default)]
pub struct ExportTable {
    inner: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    exports: Vec<Export>,
    default: Option<String>,
}

impl ExportTable {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A table of one export, which is also the default.
    #[must_use]
    pub fn single(export: Export) -> Self {
        let name = export.name.clone();
        let table = Self::new();
        table.insert(export);
        table.set_default(Some(name));
        table
    }

    /// Adds an export and returns the one of the same name that it replaces.
    pub fn insert(&self, export: Export) -> Option<Export> {
        let mut table = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        match table.exports.iter_mut().find(|e| e.name == export.name) {
            Some(old) => Some(std::mem::replace(old, export)),
            None => {
                table.exports.push(export);
                None
            }
        }
    }

    /// Takes an export out, for connections to come.
    pub fn remove(&self, name: &str) -> Option<Export> {
        let mut table = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let at = table.exports.iter().position(|e| e.name == name)?;
        Some(table.exports.remove(at))
    }

    /// Names the export that clients get who name none. It need not be there (yet).
    pub fn set_default(&self, name: Option<String>) {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).default = name;
    }
}

impl Exports for ExportTable {
    fn find(&self, name: &str) -> Option<Export> {
        let table = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let by_name = |name: &str| table.exports.iter().find(|e| e.name == name).cloned();
        by_name(name).or_else(|| table.default.as_deref().filter(|_| name.is_empty()).and_then(by_name))
    }

    fn list(&self) -> Vec<(String, String)> {
        let table = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        table.exports.iter().map(|e| (e.name.clone(), e.description.clone())).collect()
    }
}
