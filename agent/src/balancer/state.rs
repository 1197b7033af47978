//! The file in which K3s keeps the servers of a cluster, so that an agent starts while its `--server` is down.
//!
//! Source: K3s v1.36, `pkg/agent/loadbalancer/config.go`: valid only for the same `--server`.

use serde::Serialize;
use serde_json::Value;

/// The addresses in the file; none if it is damaged or of another `server` (`https://host:port`).
pub fn read(bytes: &[u8], server: &str) -> Vec<String> {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else {
        return Vec::new();
    };
    if value.get("ServerURL").and_then(Value::as_str) != Some(server) {
        return Vec::new();
    }
    let list = value.get("ServerAddresses").and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|item| Some(item.as_str()?.to_owned()))
        .collect()
}

/// The fields in K3s' order.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct File<'a> {
    #[serde(rename = "ServerURL")]
    server_url: &'a str,
    server_addresses: &'a [String],
}

/// The file's content.
pub fn write(server: &str, addresses: &[String]) -> String {
    let file = File {
        server_url: server,
        server_addresses: addresses,
    };
    serde_json::to_string_pretty(&file).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_kept_for_the_same_server_only() {
        let addresses = vec!["a:1".to_owned(), "b:1".to_owned()];
        let file = write("https://a:1", &addresses);
        // As Go's `json.MarshalIndent` writes K3s' struct.
        let wanted = concat!(
            "{\n  \"ServerURL\": \"https://a:1\",\n  \"ServerAddresses\": [\n",
            "    \"a:1\",\n    \"b:1\"\n  ]\n}"
        );
        assert_eq!(file, wanted);
        assert_eq!(read(file.as_bytes(), "https://a:1"), addresses);
        assert_eq!(read(file.as_bytes(), "https://c:1"), Vec::<String>::new());
        assert_eq!(read(b"{ torn", "https://a:1"), Vec::<String>::new());
    }
}
