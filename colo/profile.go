package colo

import "time"

// Profiles: what the times of a VM's protection are unless its spec gives them.
const (
	ProfileLatency    = "latency"    // a packet is not held for long: more checkpoints
	ProfileBalanced   = "balanced"   // the default
	ProfileThroughput = "throughput" // few checkpoints: a packet may be held for longer
)

type profile struct {
	delay, timeout, scan time.Duration
	rest                 float64 // see netcompare/compare
}

var profiles = map[string]profile{
	ProfileLatency:    {200 * time.Millisecond, 10 * time.Millisecond, 5 * time.Millisecond, 0.25},
	ProfileBalanced:   {defaultCheckpointDelay, defaultCompareTimeout, defaultExpiredScanCycle, 0.5},
	ProfileThroughput: {time.Second, 100 * time.Millisecond, 50 * time.Millisecond, 2},
}
