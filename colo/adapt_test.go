package colo

import (
	"testing"
	"time"
)

// Patience settles where a checkpoint costs what it costs and one is asked for as soon as that is allowed: after half a pause times patience.
func TestPatience(t *testing.T) {
	for _, every := range []float64{0, 1, 3, 10, 100} { // the guest runs for so many pauses by itself
		patient, changes := 1, 0
		share := func() float64 { return 1 / (1 + max(every, 0.5*float64(patient))) }
		for i := range 50 {
			next := morePatient(patient, share())
			if next != patient && i >= 10 {
				changes++
			}
			patient = next
		}
		if changes > 0 {
			t.Errorf("%v pauses: it goes to and fro, now %d", every, patient)
		}
		if share() > patientFrom || every >= 3 && patient != 1 {
			t.Errorf("%v pauses: patience %d, the guest stands still for %.0f %%", every, patient, 100*share())
		}
	}
	if p := morePatient(mostPatient, 1); p != mostPatient {
		t.Error(p)
	}
}

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
