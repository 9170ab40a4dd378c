package lab

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

func TestDiffering(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	data := bytes.Repeat([]byte("half"), 600<<10) // more than two pieces, and not a whole number of them
	a := write("a", data)
	changed := bytes.Clone(data)
	for _, at := range []int{0, 1 << 20, 1<<20 + 1, len(data) - 1} {
		changed[at] ^= 1
	}
	b := write("b", changed)
	for block, want := range map[int]int64{1: 4, 64 << 10: 3 * 64 << 10} {
		if got, err := differing(a, b, block); err != nil || got != want && got != want-int64(block)+int64(len(data)%block) {
			t.Errorf("in blocks of %d: %d, %v", block, got, err)
		}
	}
	if got, err := differing(a, a, 1); got != 0 || err != nil {
		t.Errorf("the same file: %d, %v", got, err)
	}
	if _, err := differing(a, write("c", data[:len(data)-1]), 1); err == nil {
		t.Error("a shorter half is not noticed")
	}
	at, err := flip(a, int64(len(data)-1))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := differing(a, write("d", data), 1); got != 1 || err != nil {
		t.Errorf("after byte %d was flipped: %d, %v", at, got, err)
	}
}

func TestSentAtMost(t *testing.T) {
	c := sentAtMost("the disks", func(r *Result) *int64 { return r.DiskBytes }, 0.013)
	for _, r := range []*Result{{}, {DiskBytes: ptr(int64(1000))}, {DiskBytes: ptr(int64(1000)), ResyncBytes: ptr(int64(14))}} {
		if c(r) == nil {
			t.Errorf("%+v passes", r)
		}
	}
	if err := c(&Result{DiskBytes: ptr(int64(1000)), ResyncBytes: ptr(int64(13))}); err != nil {
		t.Error(err)
	}
	if resynced("bitmap")(&Result{ResyncMode: ptr("full")}) == nil || resynced("bitmap")(&Result{}) == nil || resynced("full")(&Result{ResyncMode: ptr("full")}) != nil {
		t.Error("the mode of a resync is not told from others")
	}
}
