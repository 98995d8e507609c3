//! Where does it go, and may it: route, balance, breaker, limit.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use ringway::policy::rate_limit::identity::Identity;
use ringway::proxy::limiter::{Admission, Limiter, SharedLimits, Subject};
use ringway::snapshot::{OnError, Quota, RateLimit, RateLimitKey};
use ringway::traffic::balance::{Algorithm, Balancer, FULL_SHARE};
use ringway::traffic::breaker::{Breaker, BreakerSettings, Verdict};
use ringway::traffic::path;
use ringway::traffic::route::{RouteSpec, RouteTable};
use ringway::traffic::window::Limit;

use super::{WARM_UPS, Work, moment, work};

/// A path is normalised, and its route found among 16.
pub fn route() -> Work {
    let specs: Vec<_> = (0..16)
        .map(|service| RouteSpec { prefix: format!("/api/v1/service-{service}"), hosts: Vec::new(), service })
        .collect();
    let routes = RouteTable::new(&specs);
    let mut scratch = Vec::new();
    work(move || {
        let path = path::normalize(black_box(b"/api/v1/service-11/a/b"), &mut scratch).expect("fine");
        routes.find(b"gateway.example.com", path)
    })
}

/// One endpoint of four is chosen, with weights 1 to 4.
pub fn balance(algorithm: Algorithm) -> Work {
    let mut balancer = Balancer::new(algorithm, [1, 2, 3, 4].into_iter());
    let mut draw = 0u64;
    work(move || {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        balancer.pick(draw, |_| true, |_| FULL_SHARE, |index| index as u32)
    })
}

/// A closed breaker lets a request through, and is told that it went well.
pub fn breaker_closed() -> Work {
    let (settings, now) = (breaker_settings(), moment().instant);
    let mut breaker = Breaker::default();
    work(move || {
        let allows = breaker.allows(&settings, black_box(now));
        let permit = breaker.admit(&settings, now).expect("closed");
        (allows, breaker.state(now), breaker.settle(permit, Verdict::Success, &settings, now, 7))
    })
}

/// An open breaker refuses, and says until when.
pub fn breaker_open() -> Work {
    let (settings, now) = (breaker_settings(), moment().instant);
    let mut breaker = Breaker::default();
    while let Some(permit) = breaker.admit(&settings, now) {
        breaker.settle(permit, Verdict::Failure, &settings, now, 7);
    }
    work(move || (breaker.allows(&settings, black_box(now)), breaker.retry_at(now), breaker.state(now)))
}

fn breaker_settings() -> BreakerSettings {
    BreakerSettings {
        enabled: true,
        failure_threshold: 5,
        failure_ratio: Some(0.5),
        minimum_requests: 20,
        window: Duration::from_secs(10),
        open_for: Duration::from_secs(10),
        open_for_max: Duration::from_secs(60),
        half_open_requests: 1,
    }
}

/// A request under a limit whose lease has tokens left: the ledger is not asked.
pub fn limit_granted() -> Work {
    limit(Limit::REQUESTS_MAX, |admission| admission == Admission::Pass)
}

/// A request of a client that is known to be denied: the ledger is not asked.
pub fn limit_denied() -> Work {
    limit(10, |admission| matches!(admission, Admission::Deny(_)))
}

/// The worker's decision about a client, by the ledger in memory, under one limit of so many requests an hour. In the end it
/// must be as `expected`.
fn limit(requests: u32, expected: fn(Admission) -> bool) -> Work {
    let limiter = Rc::new(Limiter::new(SharedLimits::new(1_000), None, OnError::Local));
    let rules = [RateLimit {
        id: 1,
        name: "default".into(),
        ledger_name: "sms:default".into(),
        quota: Quota::Default(Limit::new(requests, Duration::from_secs(3_600))),
        key: RateLimitKey::Identity,
    }];
    let (moment, mut held) = (moment(), Vec::new());
    let mut decide = move || {
        let subject = Subject {
            identity: Some(Identity::User(black_box(b"user-1"))),
            ip: Identity::ip(Ipv4Addr::LOCALHOST.into(), 64),
            own: None,
        };
        limiter.admit(&rules, &subject, moment, &mut held)
    };
    let last = (0..WARM_UPS).map(|_| decide()).last();
    assert!(last.is_some_and(expected), "{last:?}");
    work(decide)
}
