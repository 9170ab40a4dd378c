package colo

import (
	"testing"
	"time"
)

// The delay settles, whatever a checkpoint costs, and stays within its bounds.
func TestAdapt(t *testing.T) {
	const longest = 300 * time.Millisecond
	for _, pause := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 10 * time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond} {
		delay, changes := longest, 0
		for i := range 50 {
			next := adapt(delay, longest, float64(pause)/float64(delay+pause))
			if next != delay && i >= 20 {
				changes++
			}
			if delay = next; delay < adaptShortest || delay > longest {
				t.Fatalf("pause %v: delay %v", pause, delay)
			}
		}
		if changes > 0 {
			t.Errorf("pause %v: it goes to and fro, now %v", pause, delay)
		}
		if pause == time.Millisecond && delay != adaptShortest || pause >= 20*time.Millisecond && delay != longest && float64(pause)/float64(delay+pause) > adaptHigh {
			t.Errorf("pause %v: delay %v", pause, delay)
		}
	}
	if d := adapt(20*time.Millisecond, 20*time.Millisecond, 0); d != 20*time.Millisecond {
		t.Errorf("a spec's short delay becomes %v", d)
	}
}
