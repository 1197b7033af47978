//! A datastore that is put back to an earlier state under running servers.

use server::request::What;
use tests::database::etcd::Etcd;
use tokio::time::timeout;

use crate::{Machines, PATIENCE, controllers_work, map, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_etcd_went_back_a_server_leads_and_controllers_work() {
    let machines = Machines::new("restored");
    let mut etcd = Etcd::start().unwrap();
    let [a, b] = machines.start_both(&etcd.endpoint()).await;
    controllers_work(&a, "before").await;
    etcd.kill(0).unwrap();
    etcd.keep(0).unwrap();
    etcd.start_again(0).unwrap();
    // Many: what the servers do by themselves must not make up for it while the test lasts.
    for number in 0..500 {
        let name = format!("lost{number}");
        until("it is written", async || {
            let create = a.client.create(What::CONFIG_MAPS, "default", map(&name)).await;
            create.is_ok() || a.client.get(What::CONFIG_MAPS, "default", &name).await.is_ok()
        })
        .await;
    }
    let seen = a.client.get(What::CONFIG_MAPS, "default", "lost499");
    assert!(seen.await.is_ok());
    etcd.kill(0).unwrap();
    etcd.put_back(0).unwrap();
    etcd.start_again(0).unwrap();
    for server in [&a, &b] {
        until("what is no more is not shown", async || {
            let lost = server.client.get(What::CONFIG_MAPS, "default", "lost0").await;
            lost.is_err_and(|status| status.code == 404)
        })
        .await;
    }
    for (server, name) in [(&a, "after"), (&b, "after-too")] {
        timeout(PATIENCE, controllers_work(server, name)).await.unwrap();
    }
    a.leave().await;
    b.leave().await;
}
