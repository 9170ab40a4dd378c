//go:build race

package sim

// The race detector makes the Go scheduler choose at random, so a seed has many stories under it.
const raceDetector = true
