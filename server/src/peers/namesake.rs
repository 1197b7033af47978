//! Other servers that are called as this one is: boxes that all kept their default host name.
//!
//! Servers go on under one name: Leases, endpoints and streams between servers go by address, the lead by a holder that no
//! two lives share. Nodes do not: the one that registered first has the name, and the other server's own is refused by its
//! password for as long as it tries. Which of the two that is cannot be seen from here, so both say what is wrong, once.

use std::collections::HashMap;

use agent::wire::object::text;
use serde_json::Value;

use super::presence::ADDRESS;
use super::stamp;
use super::twin::node;

/// The Leases of servers with this one's name, by their own names.
#[derive(Debug, Default)]
pub struct Namesakes(HashMap<String, Seen>);

#[derive(Debug)]
struct Seen {
    /// The Lease when it was seen first.
    stamp: String,
    told: bool,
}

impl Namesakes {
    /// Takes in the Leases of all servers as they are now, and returns what is wrong and was not said yet.
    ///
    /// `own`: the name of this server's Lease. Only one that was seen to change is another server: after a change of address,
    /// or a crash, that of an earlier life of this server lies about.
    pub fn news<'a>(&mut self, name: &str, own: &str, leases: impl Iterator<Item = &'a Value>) -> Vec<String> {
        let mut before = std::mem::take(&mut self.0);
        let mut news = Vec::new();
        for lease in leases {
            let key = text(lease, &["metadata", "name"]);
            if node(lease) != name || key == own {
                continue;
            }
            let mut seen = before.remove(key).unwrap_or_else(|| Seen {
                stamp: stamp(lease).to_owned(),
                told: false,
            });
            if !seen.told && seen.stamp != stamp(lease) {
                seen.told = true;
                news.push(problem(name, text(lease, &["metadata", "annotations", ADDRESS])));
            }
            self.0.insert(key.to_owned(), seen);
        }
        news
    }
}

/// What is wrong, and what to do.
fn problem(name: &str, address: &str) -> String {
    format!(
        "this server and the one at {address} are both called {name}. Both serve, but only one of their two nodes can have the \
         name: the one that registered first; the other one is refused (\"node name {name:?} is taken\"). Give this server or \
         that one a name of its own with --node-name, or --with-node-id, and start it again"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::twin::NODE;
    use super::*;

    fn lease(key: &str, server: &str, stamp: &str) -> Value {
        json!({ "metadata": { "name": key, "resourceVersion": stamp,
            "annotations": { NODE: server, ADDRESS: format!("192.0.2.{key}:6443") } } })
    }

    #[test]
    fn one_that_lives_is_told_of_once_until_it_is_gone() {
        let mut namesakes = Namesakes::default();
        let mut news = |leases: &[Value]| namesakes.news("box", "1", leases.iter());
        let own = lease("1", "box", "10");
        assert_eq!(news(&[own.clone(), lease("2", "box", "5")]), [""; 0], "it may be dead");
        let said = news(&[lease("1", "box", "11"), lease("2", "box", "6")]);
        let [said] = said.as_slice() else { panic!("{said:?}") };
        for words in ["192.0.2.2:6443", "called box", "--node-name", "--with-node-id"] {
            assert!(said.contains(words), "{words:?} is missing in {said}");
        }
        assert_eq!(news(&[own.clone(), lease("2", "box", "7")]), [""; 0]);
        assert_eq!(news(std::slice::from_ref(&own)), [""; 0]);
        assert_eq!(news(&[own.clone(), lease("2", "box", "8")]), [""; 0]);
        assert_eq!(news(&[own, lease("2", "box", "9")]).len(), 1, "it came back");
    }

    #[test]
    fn servers_of_other_names_and_what_an_earlier_life_left_are_nothing_to_tell() {
        let mut namesakes = Namesakes::default();
        for stamp in ["1", "2", "3"] {
            let leases = [
                lease("1", "box", stamp),
                lease("2", "shed", stamp),
                lease("3", "box", "1"),
                lease("4", "", stamp),
            ];
            assert_eq!(namesakes.news("box", "1", leases.iter()), [""; 0], "{stamp}");
        }
    }
}
