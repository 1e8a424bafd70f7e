//! Sealing and opening the pages of one layer file.
//!
//! A layer's key is derived from its random id, a file is written once from its start and never
//! appended to, and the nonce is the number of the page: no (key, nonce) pair seals two plaintexts (I8).

use super::DamageKind;
use afterimage_format::layer::{LayerHeader, PAGE_HEADER_LEN, PageKind, TAG_LEN, check_page, nonce, put_page_header};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// The key of one layer, with what its seals bind.
pub struct PageSeal {
    key: LessSafeKey,
    header: LayerHeader,
}

impl std::fmt::Debug for PageSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PageSeal")
    }
}

impl PageSeal {
    /// A seal with this key for the layer with this header.
    ///
    /// # Errors
    /// If the cipher does not take the key, which its length rules out.
    pub fn new(key: &[u8; 32], header: LayerHeader) -> Result<Self, DamageKind> {
        let key = UnboundKey::new(&AES_256_GCM, key).map_err(|_| DamageKind::Seal(0))?;
        Ok(Self { key: LessSafeKey::new(key), header })
    }

    /// Seals a page: header, sealed bytes, tag.
    ///
    /// # Errors
    /// If the cipher refuses, which the bounded length of a page rules out.
    pub fn seal(&self, kind: PageKind, number: u64, plain: &[u8]) -> Result<Vec<u8>, DamageKind> {
        let mut page = Vec::with_capacity(PAGE_HEADER_LEN + plain.len() + TAG_LEN);
        page.resize(PAGE_HEADER_LEN, 0);
        page.extend_from_slice(plain);
        let nonce = Nonce::assume_unique_for_key(nonce(number));
        let aad = Aad::from(self.header.additional(kind));
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, aad, &mut page[PAGE_HEADER_LEN..])
            .map_err(|_| DamageKind::Seal(number))?;
        page.extend_from_slice(tag.as_ref());
        put_page_header(&mut page, number);
        Ok(page)
    }

    /// Checks a page and opens it in place; answers its plain bytes.
    ///
    /// # Errors
    /// [`DamageKind`] if checksum or seal do not hold.
    pub fn open<'a>(&self, kind: PageKind, number: u64, page: &'a mut [u8]) -> Result<&'a [u8], DamageKind> {
        check_page(page, number)?;
        let nonce = Nonce::assume_unique_for_key(nonce(number));
        let aad = Aad::from(self.header.additional(kind));
        let plain = self.key.open_in_place(nonce, aad, &mut page[PAGE_HEADER_LEN..]);
        plain.map(|p| &*p).map_err(|_| DamageKind::Seal(number))
    }
}
