//! Hooks on the way of many writes at once.

use super::*;

const LOOP: &str = "(loop $l (br $l)) (unreachable)";

fn pipeline(hooks: Vec<Hook>) -> Pipeline {
    let active = Active::default();
    active.replace(Set::new(1, hooks));
    Pipeline::new(active)
}

fn view() -> Arc<dyn View> {
    Arc::new(Kept::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_looping_hook_does_not_hold_up_the_writes_of_others() {
    let runtime = runtime();
    let looping = hook(&runtime, "loop", &Wat::validator(LOOP), r#"{"prefix":"l"}"#);
    let good = hook(&runtime, "good", &Wat::validator(OK), r#"{"prefix":"g"}"#);
    let pipeline = pipeline(vec![looping, good]);
    let deadline = Instant::now() + Duration::from_millis(1_500);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let pipeline = pipeline.clone();
        tasks.spawn(async move { pipeline.judge(vec![put("l", "1")], view(), deadline).await.unwrap_err() });
    }
    let mut judged = 0;
    let mut slowest = Duration::ZERO;
    while Instant::now() < deadline {
        let started_at = Instant::now();
        pipeline.judge(vec![put("g", "1")], view(), soon()).await.unwrap();
        slowest = slowest.max(started_at.elapsed());
        judged += 1;
    }
    assert!(judged > 100 && slowest < Duration::from_millis(500), "{judged} judged, slowest {slowest:?}");
    while let Some(error) = tasks.join_next().await {
        assert!(matches!(error.unwrap(), Error::TimedOut { .. } | Error::Busy { .. }));
    }
}

#[tokio::test]
async fn writes_beyond_the_queue_are_refused_at_once() {
    let hook = hook(&runtime(), "loop", &Wat::validator(LOOP), r#"{"deadline_ms":400}"#);
    let pipeline = pipeline(vec![hook]);
    let deadline = Instant::now() + Duration::from_millis(600);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..crate::limits::PLUGIN_QUEUE_MAX / 2 + 100 {
        let pipeline = pipeline.clone();
        tasks.spawn(async move { pipeline.judge(vec![put("l", "1")], view(), deadline).await });
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut refused_at_once = 0;
    while let Some(result) = tasks.try_join_next() {
        assert!(matches!(result.unwrap(), Err(Error::Busy { .. })));
        refused_at_once += 1;
    }
    assert!(refused_at_once > 50, "{refused_at_once}");
    while let Some(result) = tasks.join_next().await {
        assert!(result.unwrap().is_err());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_without_room_is_left_out() {
    let looping = hook(&runtime(), "loop", &Wat::validator(LOOP), r#"{"mode":"monitor","deadline_ms":300}"#);
    let pipeline = pipeline(vec![looping]);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let pipeline = pipeline.clone();
        tasks.spawn(async move { pipeline.judge(vec![put("l", "1")], view(), soon()).await });
    }
    let started_at = Instant::now();
    while let Some(result) = tasks.join_next().await {
        assert!(result.unwrap().is_ok());
    }
    assert!(started_at.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn a_judgement_under_an_old_set_says_so() {
    let pipeline = pipeline(vec![hook(&runtime(), "h", &Wat::validator(OK), "{}")]);
    assert_eq!(pipeline.judge(vec![put("k", "1")], view(), soon()).await.unwrap().epoch, 1);
    pipeline.active().replace(Set::new(5, Vec::new()));
    pipeline.active().replace(Set::new(3, Vec::new()));
    assert_eq!(pipeline.judge(vec![put("k", "1")], view(), soon()).await.unwrap().epoch, 5);
}

#[tokio::test]
async fn an_epoch_can_be_waited_for() {
    let active = Active::default();
    let deadline = Instant::now() + Duration::from_millis(20);
    assert!(matches!(active.wait_for(2, deadline).await, Err(Error::EpochWait { epoch: 2 })));
    let waiting = tokio::spawn({
        let active = active.clone();
        async move { active.wait_for(2, soon()).await.map(|set| set.epoch()) }
    });
    active.replace(Set::new(3, Vec::new()));
    assert_eq!(waiting.await.unwrap().unwrap(), 3);
}
