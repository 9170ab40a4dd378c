package lab

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestLongestGap(t *testing.T) {
	tests := []struct {
		name     string
		answers  []int64
		from, to int64
		want     int64
		measured bool
	}{
		{"no answers", nil, 10, 20, 0, false},
		{"none before", []int64{12, 13}, 10, 20, 0, false},
		{"across the event", []int64{1, 5, 9, 14, 16}, 10, 15, 5, true},
		{"later than the event", []int64{9, 11, 19, 20}, 10, 30, 10, true}, // black from 20 to 30
		{"before the event doesn't count", []int64{1, 8, 9, 11}, 10, 12, 2, true},
		{"begins after the end", []int64{9, 11, 21, 99}, 10, 20, 10, true},
		{"never again", []int64{1, 9}, 10, 50, 41, true},
		{"empty interval", []int64{1, 9}, 10, 10, 0, false},
	}
	for _, tt := range tests {
		got, ok := longestGap(tt.answers, tt.from, tt.to)
		if int64(got) != tt.want || ok != tt.measured {
			t.Errorf("%s: got %d, %v; want %d, %v", tt.name, got, ok, tt.want, tt.measured)
		}
	}
}

func TestTrack(t *testing.T) {
	var tr Track
	at := func(ms int) time.Time { return time.UnixMilli(int64(1_000_000 + ms)) }
	tr.add(at(0), at(10), true)
	tr.add(at(5), at(400), true) // answered after later ones
	tr.add(at(10), at(13), true)
	tr.add(at(15), at(115), false)
	tr.add(at(20), at(22), true)
	if got, ok := tr.Blackout(at(15), at(500)); !ok || got != 378*time.Millisecond {
		t.Errorf("blackout %v, %v", got, ok)
	}
	if got, ok := tr.Latency(0.5, at(0), at(25)); !ok || got != 10*time.Millisecond {
		t.Errorf("median %v, %v", got, ok)
	}
	if _, ok := tr.Latency(0.5, at(30), at(40)); ok {
		t.Error("a latency of nothing")
	}
	if err := tr.Await(t.Context(), at(20)); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := tr.Await(ctx, at(21)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}
