//! OpenAPI v3 documents, one for each group version, built when asked for and not kept.

use bytes::Bytes;

use crate::registry::resource::Resource;

/// The body of `/openapi/v3`: where each group version's document is.
pub fn index(_rows: &[&Resource]) -> Bytes {
    Bytes::from_static(b"{\"paths\":{}}")
}

/// The document of one group version, `v1` or `apps/v1`; `None` if no row belongs to it.
pub fn document(_group_version: &str, _rows: &[&Resource]) -> Option<Bytes> {
    None
}

/// The `hash` parameter of a document's address: changes when the document does.
pub fn hash(_group_version: &str, _rows: &[&Resource]) -> String {
    String::new()
}
