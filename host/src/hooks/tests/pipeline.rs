//! Hooks on the way of many writes at once.

use std::thread::Thread;

use tokio::task::JoinSet;

use self::Place::{Background, Blocking, Here};
use super::*;

fn pipeline(hooks: Vec<Hook>) -> Pipeline {
    let active = Active::default();
    active.replace(Set::new(1, hooks));
    Pipeline::new(active)
}

fn view() -> Arc<dyn View> {
    Arc::new(Kept::default())
}

/// Judges a write of the key `k`.
async fn ask(pipeline: &Pipeline, json: &str) -> Result<Judged, Error> {
    pipeline.judge(vec![put("k", json)], view(), soon()).await
}

/// Judges many writes of the key `l` at once.
fn ask_often(pipeline: &Pipeline, count: usize, deadline: Instant) -> JoinSet<Result<Judged, Error>> {
    let ask = |_| {
        let pipeline = pipeline.clone();
        async move { pipeline.judge(vec![put("l", "1")], view(), deadline).await }
    };
    (0..count).map(ask).collect()
}

/// Loops for some tens of milliseconds if the value of the first write has more than three bytes.
const BUSY_IF_LONG: &str = "(local $n i32) \
    (if (i32.gt_u (i32.load offset=24 (local.get 0)) (i32.const 3)) (then \
      (loop $l (br_if $l (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 40000000)))))) \
    (i32.const 1024)";

/// Notes on which threads plugins run.
#[derive(Default, Clone)]
struct Threads(Arc<Mutex<Vec<Thread>>>);

/// Where a call ran.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Where the request is.
    Here,
    Blocking,
    Background,
}

impl LogSink for Threads {}

impl Observer for Threads {
    fn calls_of(&self, _: &str, _: &str) -> Calls {
        let Self(threads) = self.clone();
        Box::new(move |_, _, _| threads.lock().push(std::thread::current()))
    }
}

impl Threads {
    /// Where each call ran since this was last asked.
    fn take(&self) -> Vec<Place> {
        let threads = std::mem::take(&mut *self.0.lock());
        let place = |thread: Thread| match thread.name() {
            _ if thread.id() == std::thread::current().id() => Place::Here,
            Some(name) if name.starts_with("plugin-") => Place::Background,
            _ => Place::Blocking,
        };
        threads.into_iter().map(place).collect()
    }
}

/// A hook in a pipeline of its own.
fn watched(wat: &Wat, binding: &str) -> (Pipeline, Threads, Hook) {
    let threads = Threads::default();
    let runtime = Runtime::new(Arc::new(threads.clone()), Compilers::Here, None).unwrap();
    let hook = hook(&runtime, "h", wat, binding);
    (pipeline(vec![hook.clone()]), threads, hook)
}

/// As above, with a history of short calls. It is recorded, not made: how long calls take depends on how busy the machine is.
async fn quick(wat: &Wat, binding: &str) -> (Pipeline, Threads) {
    let (pipeline, threads, hook) = watched(wat, binding);
    // A call that is interrupted while another process has the core costs credit.
    for _ in 0..100 {
        (0..100).for_each(|_| hook.share().history.record(Duration::from_micros(1), false));
        ask(&pipeline, "1").await.unwrap();
        if threads.take() == [Here] {
            return (pipeline, threads);
        }
    }
    panic!("a quick hook was never asked where the request is");
}

#[tokio::test]
async fn a_quick_hook_is_asked_where_the_request_is() {
    let (pipeline, threads) = quick(&Wat::validator(OK).without_reads(), "{}").await;
    // Not with a value that is large, nor with many.
    ask(&pipeline, &"1".repeat(20_000)).await.unwrap();
    pipeline.judge(vec![put("k", "1"); 17], view(), soon()).await.unwrap();
    assert_eq!(threads.take(), [Blocking, Blocking]);
}

#[tokio::test]
async fn a_hook_that_may_read_is_never_asked_on_an_async_thread() {
    let (pipeline, threads, _) = watched(&Wat::validator(OK), "{}");
    for _ in 0..500 {
        ask(&pipeline, "1").await.unwrap();
        assert_ne!(threads.take(), [Here]);
    }
}

#[tokio::test]
async fn a_quick_hook_that_is_slow_for_once_is_asked_again_elsewhere() {
    let (pipeline, threads) = quick(&Wat::validator(BUSY_IF_LONG).without_reads(), r#"{"deadline_ms":10000}"#).await;
    ask(&pipeline, "1234").await.unwrap();
    // One call counts, on a thread that may block; and it takes some short ones until the hook is trusted again.
    assert_eq!(threads.take(), [Blocking]);
    ask(&pipeline, "1").await.unwrap();
    assert_ne!(threads.take(), [Here]);
}

#[tokio::test]
async fn a_quick_hook_that_needs_much_for_once_is_asked_again_elsewhere() {
    // Refuses the write if it does not get 200 pages more.
    let grow = "(if (i32.gt_u (i32.load offset=24 (local.get 0)) (i32.const 3)) (then \
        (if (i32.eq (memory.grow (i32.const 200)) (i32.const -1)) (then (return (i32.const 2048)))))) (i32.const 1024)";
    let wat = Wat { validate: Some(grow.to_owned()), ..Wat::rejecting(0) }.without_reads();
    let (pipeline, threads) = quick(&wat, "{}").await;
    ask(&pipeline, "1234").await.unwrap();
    assert_eq!(threads.take(), [Blocking]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heavy_hooks_take_no_room_of_others() {
    let runtime = runtime();
    let heavy = Wat::validator(BUSY_IF_LONG).without_reads();
    let mut hooks = vec![hook(&runtime, "good", &Wat::validator(OK), r#"{"prefix":"g"}"#)];
    for name in ["a", "b", "c"] {
        hooks.push(hook(&runtime, name, &heavy, &format!(r#"{{"prefix":"{name}","deadline_ms":10000}}"#)));
    }
    let pipeline = pipeline(hooks);
    let until = Instant::now() + Duration::from_secs(3);
    let mut tasks = JoinSet::new();
    for key in ["a", "b", "c"].repeat(8) {
        let pipeline = pipeline.clone();
        tasks.spawn(async move {
            while Instant::now() < until {
                pipeline.judge(vec![put(key, "1234")], view(), soon()).await.unwrap();
            }
        });
    }
    // Until each has shown what it is.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut judged = 0;
    while Instant::now() < until {
        pipeline.judge(vec![put("g", "1")], view(), soon()).await.unwrap();
        judged += 1;
    }
    assert!(judged > 500, "{judged} judged in two seconds");
    tasks.join_all().await;
}

#[tokio::test]
async fn a_hook_whose_calls_take_long_stands_back() {
    let (pipeline, threads, _) = watched(&Wat::validator(BUSY_IF_LONG).without_reads(), r#"{"deadline_ms":10000}"#);
    for _ in 0..3 {
        ask(&pipeline, "1234").await.unwrap();
    }
    assert_eq!(threads.take(), [Blocking, Background, Background]);
    for _ in 0..100_000 {
        ask(&pipeline, "1").await.unwrap();
        if threads.take() != [Background] {
            return;
        }
    }
    panic!("short calls make it no lighter");
}

#[tokio::test]
async fn a_quick_hook_has_its_own_deadline_all_the_same() {
    let (pipeline, threads) = quick(&Wat::validator(BUSY_IF_LONG).without_reads(), r#"{"deadline_ms":5}"#).await;
    let error = ask(&pipeline, "1234").await.unwrap_err();
    assert!(matches!(error, Error::Failed { failure: Failure::TimedOut { deadline_ms: 5, .. }, .. }), "{error:?}");
    assert_eq!(threads.take(), [Blocking]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_looping_hook_does_not_hold_up_the_writes_of_others() {
    let runtime = runtime();
    let looping = hook(&runtime, "loop", &Wat::validator(LOOP), r#"{"prefix":"l"}"#);
    let good = hook(&runtime, "good", &Wat::validator(OK), r#"{"prefix":"g"}"#);
    let pipeline = pipeline(vec![looping, good]);
    let deadline = Instant::now() + Duration::from_millis(1_500);
    let tasks = ask_often(&pipeline, 200, deadline);
    let mut judged = 0;
    let mut slowest = Duration::ZERO;
    while Instant::now() < deadline {
        let started_at = Instant::now();
        pipeline.judge(vec![put("g", "1")], view(), soon()).await.unwrap();
        slowest = slowest.max(started_at.elapsed());
        judged += 1;
    }
    assert!(judged > 100 && slowest < Duration::from_millis(500), "{judged} judged, slowest {slowest:?}");
    for result in tasks.join_all().await {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::Failed { failure: Failure::TimedOut { .. }, .. } | Error::Busy(_)));
    }
}

#[tokio::test]
async fn a_hook_that_goes_on_looping_rests_between_its_calls() {
    let loop_if_long = "(if (i32.gt_u (i32.load offset=24 (local.get 0)) (i32.const 3)) (then (loop $l (br $l)))) \
                        (i32.const 1024)";
    let hook = hook(&runtime(), "h", &Wat::validator(loop_if_long), r#"{"deadline_ms":50}"#);
    let pipeline = pipeline(vec![hook.clone()]);
    let judge = async |json: &str| ask(&pipeline, json).await.map_err(|error| error.word()).err();
    // All times count from here: a rest begins when its call ends, which the test may notice late.
    let started_at = Instant::now();
    let mut least = Duration::ZERO;
    for rests in [0, 0, 1, 2, 3, 4, 4] {
        assert_eq!(judge("\"long\"").await, Some("timed_out"));
        least += Duration::from_millis(50 + 50 * rests);
        assert!(started_at.elapsed() >= least, "{:?} with {rests} rests, not {least:?}", started_at.elapsed());
    }
    // The next one waits too, since nobody knows that it ends in time. It does, and all is forgotten.
    assert_eq!(judge("1").await, None);
    assert!(started_at.elapsed() >= least + Duration::from_millis(200), "{:?}", started_at.elapsed());
    assert!(hook.share().history.backoff().is_zero());
    assert_eq!(judge("1").await, None);
}

#[tokio::test]
async fn writes_beyond_the_queue_are_refused_at_once() {
    let hook = hook(&runtime(), "loop", &Wat::validator(LOOP), r#"{"deadline_ms":2000}"#);
    let pipeline = pipeline(vec![hook]);
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut tasks = ask_often(&pipeline, crate::limits::PLUGIN_QUEUE_MAX / 2 + 100, deadline);
    for refused in 0..50 {
        let result = tokio::time::timeout_at((deadline - Duration::from_millis(500)).into(), tasks.join_next()).await;
        let Ok(Some(Ok(result))) = result else { panic!("{refused} were refused at once: {result:?}") };
        assert!(matches!(result, Err(Error::Busy(_))));
    }
    assert!(tasks.join_all().await.iter().all(Result::is_err));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_without_room_is_left_out() {
    let looping = hook(&runtime(), "loop", &Wat::validator(LOOP), r#"{"mode":"monitor","deadline_ms":300}"#);
    let pipeline = pipeline(vec![looping]);
    let tasks = ask_often(&pipeline, 100, soon());
    let started_at = Instant::now();
    assert!(tasks.join_all().await.iter().all(Result::is_ok));
    assert!(started_at.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_judgement_under_an_old_set_says_so() {
    let pipeline = pipeline(vec![hook(&runtime(), "h", &Wat::validator(OK), "{}")]);
    assert_eq!(ask(&pipeline, "1").await.unwrap().epoch, 1);
    pipeline.active().replace(Set::new(5, Vec::new()));
    pipeline.active().replace(Set::new(3, Vec::new()));
    assert_eq!(ask(&pipeline, "1").await.unwrap().epoch, 5);
}

#[tokio::test]
async fn an_epoch_can_be_waited_for() {
    let active = Active::default();
    let deadline = Instant::now() + Duration::from_millis(20);
    assert!(matches!(active.wait_for(2, deadline).await, Err(Error::EpochWait(2))));
    let waiting = tokio::spawn({
        let active = active.clone();
        async move { active.wait_for(2, soon()).await.map(|set| set.epoch()) }
    });
    active.replace(Set::new(3, Vec::new()));
    assert_eq!(waiting.await.unwrap().unwrap(), 3);
}
