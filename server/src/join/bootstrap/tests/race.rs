//! First servers that are cut off, or overtaken, when they put their record: what lies on their disks then.

use std::sync::Mutex;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::*;
use crate::store::altered::Altered;

/// What befalls the next record that takes a first server's place.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Another first server has waited for too long, and is before it.
    Overtaken,
    /// It does not come to be, and its server hears nothing.
    Lost,
    /// It comes to be, and its server hears nothing.
    Unheard,
}

struct Staged {
    memory: Memory,
    rival: Scratch,
    fate: Mutex<Option<Fate>>,
}

impl Staged {
    fn new(name: &str, fate: Fate) -> Self {
        Self {
            memory: Memory::new(),
            rival: Scratch::new(&format!("boot-staged-{name}")),
            fate: Mutex::new(Some(fate)),
        }
    }

    /// Another server is the first, with the token `rival`.
    async fn be_overtaken(&self) -> Pki {
        let place = Write::new("/amphipod/first", Expect::Any, Change::Delete);
        let _ = self.memory.write(place).await; // who was cut off may have given it back
        start(&self.memory, &self.rival.0, Some("rival")).await.unwrap().0
    }
}

impl Altered for Staged {
    fn memory(&self) -> &Memory {
        &self.memory
    }

    fn on_write(&self, write: Write) -> BoxFuture<'_, Result<Revision, StoreError>> {
        let fate = match write.change {
            Change::Move { .. } => self.fate.lock().unwrap().take(),
            Change::Put(_) | Change::Delete => None,
        };
        let unheard = || StoreError::Unavailable("cut off".to_owned());
        async move {
            match fate {
                None => self.memory.write(write).await,
                Some(Fate::Lost) => Err(unheard()),
                Some(Fate::Unheard) => self.memory.write(write).await.and(Err(unheard())),
                Some(Fate::Overtaken) => {
                    self.be_overtaken().await;
                    self.memory.write(write).await
                }
            }
        }
        .boxed()
    }
}

fn files(dir: &Scratch) -> usize {
    std::fs::read_dir(&dir.0).unwrap().count()
}

/// It was given no token, and is told so, and to be given the one of the first; also when it is started once more.
async fn is_told_to_be_given_the_token(store: &Staged, dir: &Scratch) {
    for _ in 0..2 {
        let error = start(store, &dir.0, None).await.err().unwrap();
        assert!(matches!(error, BootstrapError::NoToken), "{error}");
        let error = error.to_string();
        assert!(error.contains("K3S_TOKEN") && error.contains("server/token"), "{error}");
        assert_eq!(files(dir), 0);
    }
    let (first, _) = start(store, &store.rival.0, Some("rival")).await.unwrap();
    let (second, _) = start(store, &dir.0, Some("rival")).await.unwrap();
    assert_eq!(shared(&first), shared(&second));
}

#[tokio::test]
async fn who_made_up_a_token_and_was_not_the_first_is_left_without_it() {
    let (store, dir) = (
        Staged::new("made-up", Fate::Overtaken),
        Scratch::new("boot-race-made-up"),
    );
    is_told_to_be_given_the_token(&store, &dir).await;
    assert_eq!(keys(&store).await, [record::key(&Secret::new("rival"))]);
}

#[tokio::test]
async fn who_was_given_a_token_and_was_not_the_first_is_left_without_it() {
    let (store, dir) = (Staged::new("given", Fate::Overtaken), Scratch::new("boot-race-given"));
    let error = start(&store, &dir.0, Some("mine")).await.err().unwrap();
    assert!(matches!(error, BootstrapError::WrongToken), "{error}");
    assert_eq!(files(&dir), 0);
    is_told_to_be_given_the_token(&store, &dir).await;
}

#[tokio::test]
async fn who_was_cut_off_before_its_record_was_there_forgets_its_token_for_anothers() {
    let (store, dir) = (Staged::new("cut-off", Fate::Lost), Scratch::new("boot-race-cut-off"));
    let error = start(&store, &dir.0, None).await.err().unwrap();
    assert!(matches!(error, BootstrapError::Store(_)), "{error}");
    store.be_overtaken().await;
    is_told_to_be_given_the_token(&store, &dir).await;
}

#[tokio::test(start_paused = true)]
async fn who_was_cut_off_and_is_the_first_after_all_goes_on_with_its_token() {
    for fate in [Fate::Lost, Fate::Unheard] {
        let name = format!("first-{fate:?}");
        let (store, dir) = (Staged::new(&name, fate), Scratch::new(&format!("boot-race-{name}")));
        let with_agents = Given {
            agent_token: Some(Secret::new("agents")),
            ..Given::default()
        };
        let error = settle(&store, &dir.0, &with_agents, now()).await.err().unwrap();
        assert!(matches!(error, BootstrapError::Store(_)), "{error}");
        let made_up = passwd::next(&dir.0).unwrap().unwrap();
        let again = match fate {
            // Its record, and what is in it, was never there.
            Fate::Lost => with_agents,
            Fate::Unheard | Fate::Overtaken => Given::default(),
        };
        let settled = settle(&store, &dir.0, &again, now()).await.unwrap();
        assert_eq!(settled.token.as_ref(), Some(&made_up), "{fate:?}");
        assert_eq!(keys(&store).await, [record::key(&made_up)], "{fate:?}");
        let passwd = Passwd::load_or_create(&dir.0, &settled, &"0".repeat(64)).unwrap();
        assert!(passwd.check("server", made_up.expose()).is_some(), "{fate:?}");
        assert!(passwd.check("node", "agents").is_some(), "{fate:?}");
        let rows = std::fs::read_to_string(dir.0.join("cred/passwd")).unwrap();
        let first = rows.lines().next();
        assert_eq!(first, Some("agents,node,node,k3s:agent"), "{fate:?}: in K3s' order");
        assert_eq!(passwd::next(&dir.0).unwrap(), None, "{fate:?}");
    }
}
