//! A server's hand on the simulated datastore: it reads what it has seen, and writes by compare-and-swap, as `registry` does.
//!
//! Each call waits before it acts, and after it has written, so that anything can happen in between.

use std::cell::{RefCell, RefMut};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use agent::wire::status::{Reason, Status};
use jiff::Timestamp;

use super::world::{Fault, State, World};
use crate::controllers::Note;
use crate::join::ground::Ground;
use crate::join::node_password::{BadHash, Only, Record};

pub struct SimulatedGround {
    pub world: Rc<RefCell<World>>,
    pub server: usize,
}

fn failure(reason: Reason) -> Status {
    Status::failure(reason, reason.name())
}

impl SimulatedGround {
    fn world(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }

    /// Lets others act.
    async fn turn(&self) {
        let mut waited = false;
        poll_fn(|_| {
            let wait = !std::mem::replace(&mut waited, true);
            self.world().turns += u64::from(wait);
            if wait { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    async fn seen(&self) -> Rc<State> {
        self.turn().await;
        self.world().seen(self.server)
    }

    /// The datastore is away, or the answer is lost.
    fn away(&self, world: &mut World) -> Status {
        world.servers[self.server].trouble = world.turns;
        Status::unavailable("the datastore is away")
    }

    /// A write, if the datastore can be reached; perhaps nobody hears of it.
    async fn write(&self, act: impl FnOnce(&Self, &mut World) -> Result<(), Status>) -> Result<(), Status> {
        self.turn().await;
        let done = {
            let world = &mut *self.world();
            let lossy = world.servers[self.server].lossy;
            let done = match world.servers[self.server].reaches {
                true => act(self, world),
                false => Err(self.away(world)),
            };
            if done.is_ok() && world.servers[self.server].follows {
                world.servers[self.server].view = world.head();
            }
            match lossy > 0 && world.random.once_in(lossy) {
                true => Err(self.away(world)),
                false => done,
            }
        };
        self.turn().await;
        done
    }

    /// Whoever tries again must see what it lost against.
    fn lost(&self, world: &mut World) -> Result<(), Status> {
        if !world.servers[self.server].follows {
            return Err(self.away(world));
        }
        world.servers[self.server].view = world.head();
        Ok(())
    }

    /// Changes the record that is meant, or deletes it (`None`), as it is in the datastore.
    fn change(
        &self,
        world: &mut World,
        node: &str,
        only: &Only,
        new: impl Fn(&Record) -> Option<Record>,
    ) -> Result<(), Status> {
        loop {
            let Some(old) = world.seen(self.server).records.get(node).cloned() else {
                return Err(failure(Reason::NotFound));
            };
            let by_name = world.fault == Some(Fault::ForgetsByName) && new(&old).is_none();
            let changed = only.version.as_ref().is_some_and(|version| *version != old.version);
            if (only.uid != old.uid || changed) && !by_name {
                return Err(failure(Reason::Conflict));
            }
            let new = new(&old);
            if new.as_ref() == Some(&*old) {
                return Ok(());
            }
            let head = world.state();
            if head
                .records
                .get(node)
                .is_none_or(|present| present.version != old.version)
            {
                self.lost(world)?;
                continue;
            }
            match &new {
                Some(new) => world.judge_note(node, &old, new),
                None => world.judge_deletion(self.server, node, &old),
            }
            world.put(node, new);
            return Ok(());
        }
    }

    /// With a fault, a condition less.
    fn only(&self, only: &Only, fault: Fault) -> Only {
        let ignored = self.world().fault == Some(fault);
        Only {
            version: only.version.clone().filter(|_| !ignored),
            ..only.clone()
        }
    }
}

impl Ground for SimulatedGround {
    async fn get(&self, node: &str) -> Result<Option<Record>, Status> {
        let state = self.seen().await;
        Ok(state.records.get(node).map(|record| Record::clone(record)))
    }

    async fn node_uid(&self, node: &str) -> Result<Option<String>, Status> {
        Ok(self.seen().await.nodes.get(node).cloned())
    }

    async fn all(&self) -> Result<BTreeMap<String, Record>, Status> {
        let state = self.seen().await;
        let all = state.records.iter();
        Ok(all
            .map(|(node, record)| (node.clone(), Record::clone(record)))
            .collect())
    }

    async fn nodes(&self) -> Result<BTreeMap<String, String>, Status> {
        Ok(self.seen().await.nodes.clone())
    }

    async fn catch_up(&self) -> bool {
        self.turn().await;
        let world = &mut *self.world();
        let (head, never) = (world.head(), world.fault == Some(Fault::NeverBehind));
        let server = &mut world.servers[self.server];
        if server.reaches && server.follows && !never {
            server.view = head;
        }
        never || server.reaches && server.follows
    }

    async fn create(&self, node: &str, record: &Record) -> Result<(), Status> {
        let act = |this: &Self, world: &mut World| {
            if world.state().records.contains_key(node) {
                this.lost(world)?;
                return Err(failure(Reason::AlreadyExists));
            }
            world.make(this.server, node, record);
            Ok(())
        };
        self.write(act).await
    }

    async fn replace(&self, node: &str, version: &str, record: &Record) -> Result<(), Status> {
        let act = |this: &Self, world: &mut World| {
            let seen = world.seen(this.server).records.get(node).cloned();
            let blindly = world.fault == Some(Fault::ReplacesWhatChanged);
            let Some(old) = seen.filter(|old| old.version == version || blindly) else {
                return Err(failure(Reason::AlreadyExists));
            };
            if world.state().records.get(node) != Some(&old) {
                this.lost(world)?;
                return Err(failure(Reason::AlreadyExists));
            }
            let stays = world.fault == Some(Fault::WindowStays);
            let record = Record {
                window: old.window.filter(|_| stays),
                ..record.clone()
            };
            world.judge_replacement(this.server, &old, &record);
            world.make(this.server, node, &record);
            Ok(())
        };
        self.write(act).await
    }

    async fn note(&self, node: &str, record: &Record, key: Option<&str>) -> Result<(), Status> {
        let noted = |old: &Record| {
            Some(Record {
                key: key.map(str::to_owned).or_else(|| old.key.clone()),
                // The datastore gives it another one.
                version: String::new(),
                ..old.clone()
            })
        };
        if self.world().fault == Some(Fault::NotesNothing) {
            return Ok(());
        }
        let act = |this: &Self, world: &mut World| {
            this.change(world, node, &record.itself(), noted)?;
            world.came(this.server, record);
            Ok(())
        };
        self.write(act).await
    }

    async fn tie(&self, node: &str, only: &Only, uid: &str) -> Result<(), Status> {
        let only = self.only(only, Fault::TiesWhatChanged);
        let tied = |old: &Record| {
            Some(Record {
                owner: Some(uid.to_owned()),
                ..old.clone()
            })
        };
        self.write(|this, world| this.change(world, node, &only, tied)).await
    }

    async fn close(&self, node: &str, only: &Only) -> Result<(), Status> {
        if self.world().fault == Some(Fault::WindowNeverCloses) {
            return Ok(());
        }
        let closed = |old: &Record| {
            Some(Record {
                window: None,
                ..old.clone()
            })
        };
        self.write(|this, world| this.change(world, node, only, closed)).await
    }

    async fn forget(&self, node: &str, only: &Only) -> Result<(), Status> {
        let only = self.only(only, Fault::ForgetsWhatChanged);
        self.write(|this, world| this.change(world, node, &only, |_| None))
            .await
    }

    async fn hash(&self, password: &str) -> Result<String, String> {
        Ok(format!("$1:{password}"))
    }

    async fn verify(&self, text: &str, password: &str) -> Result<Result<bool, BadHash>, String> {
        self.turn().await;
        Ok(text.strip_prefix("$1:").map(|text| text == password).ok_or(BadHash))
    }

    fn up(&self) -> Duration {
        let world = self.world();
        Duration::from_secs(world.now - world.servers[self.server].started)
    }

    async fn tell(&self, _note: &Note, _now: Timestamp) {}
}
