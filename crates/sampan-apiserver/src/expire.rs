//! Events are kept for an hour after they were last written (`--event-ttl`), then removed without anybody asking.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sampan_base::clock::Instant;
use sampan_store::{Change, Check, Expect, Key, Range, Revision, Txn, Write};

use crate::server::Server;

const KEPT: Duration = Duration::from_secs(3600);
const PREFIX: &str = "/core/events/";
/// How often expired events are looked for.
const EVERY: Duration = Duration::from_secs(30);

/// Runs until the store is closed. After a restart every event starts its hour anew: when it was written is not stored.
pub async fn run(server: Arc<Server>) {
    let store = &server.config.store;
    let clock = &server.config.clock;
    loop {
        let Ok(page) = store.range(&Range { prefix: PREFIX, ..Range::default() }) else { return };
        let Ok(mut watch) = store.watch(PREFIX, page.revision) else { return };
        let now = clock.instant();
        // In the order of their writing, so the first is always the next to go.
        let mut ages: VecDeque<(Instant, Key, Revision)> =
            page.entries.into_iter().map(|entry| (now, entry.key, entry.modified)).collect();
        let mut next = now + EVERY;
        loop {
            tokio::select! {
                biased;
                () = clock.sleep_until(next) => {
                    next = clock.instant() + EVERY;
                    while let Some((written, _, _)) = ages.front()
                        && written.elapsed() >= KEPT
                        && let Some((_, key, revision)) = ages.pop_front()
                    {
                        // A newer write has an entry of its own further back.
                        let check = Check { key: key.clone(), expect: Expect::Modified(revision) };
                        let delete = Write::Delete { key, last: None };
                        let _ = store.commit(Txn { checks: vec![check], writes: vec![delete] }).await;
                    }
                }
                event = watch.next() => match event {
                    Ok(event) => {
                        if let Change::Put { entry, .. } = &event.change {
                            ages.push_back((clock.instant(), entry.key.clone(), entry.modified));
                        }
                    }
                    Err(sampan_store::WatchEnd::Lagged) => break,
                    Err(sampan_store::WatchEnd::Closed) => return,
                }
            }
        }
    }
}
