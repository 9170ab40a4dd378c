package service

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func openCounter(t *testing.T, path string) *Counter {
	t.Helper()
	c, err := OpenCounter(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func add(t *testing.T, c *Counter, id string) int64 {
	t.Helper()
	count, err := c.Add(id)
	if err != nil || count.ID != id {
		t.Fatal(count, err)
	}
	return count.N
}

func TestCounterCountsEveryIDOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	c := openCounter(t, path)
	for i, id := range []string{"a", "b", "a", "c", "b"} {
		if got, want := add(t, c, id), []int64{1, 2, 1, 3, 2}[i]; got != want {
			t.Errorf("%s got %d, want %d", id, got, want)
		}
	}
	// The log is what counts: a new counter knows it without the old one's help.
	c2 := openCounter(t, path)
	if diff := cmp.Diff([]Count{{1, "a"}, {2, "b"}, {3, "c"}}, c2.Counts(0)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Count{{3, "c"}}, c2.Counts(2)); diff != "" {
		t.Error(diff)
	}
	if got := add(t, c2, "b"); got != 2 {
		t.Errorf("b got %d after the restart", got)
	}
}

func TestCounterConcurrent(t *testing.T) {
	c := openCounter(t, filepath.Join(t.TempDir(), "log"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 20 {
				_, _ = c.Add(fmt.Sprint("id", i))
			}
		})
	}
	wg.Wait()
	if got := len(c.Counts(0)); got != 20 {
		t.Errorf("%d counts of 20 ids", got)
	}
}

// TestCounterSurvivesATornEnd cuts the log at every length, as a crash may.
func TestCounterSurvivesATornEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	c := openCounter(t, path)
	for _, id := range []string{"a", "b", "c"} {
		add(t, c, id)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) + 1 {
		text := whole[:cut]
		lines := strings.Count(string(text), "\n")
		for _, tail := range []string{"", "\x00\x00", "9 z 00000000\n"} {
			if err := os.WriteFile(path, append(text[:cut:cut], tail...), 0o644); err != nil {
				t.Fatal(err)
			}
			c := openCounter(t, path)
			if got := len(c.Counts(0)); got != lines {
				t.Fatalf("cut at %d, then %q: %d counts, want %d", cut, tail, got, lines)
			}
			if got := add(t, c, "new"); got != int64(lines+1) {
				t.Fatalf("cut at %d: new got %d", cut, got)
			}
			if got := len(openCounter(t, path).Counts(0)); got != lines+1 {
				t.Fatalf("cut at %d: the new line is not in the log", cut)
			}
		}
	}
	// Damage before the end is no torn write.
	if err := os.WriteFile(path, append([]byte("x"), whole...), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenCounter(path); err == nil {
		t.Error("a damaged log was opened")
	}
}

func TestCounterErrors(t *testing.T) {
	c := openCounter(t, filepath.Join(t.TempDir(), "log"))
	for _, id := range []string{"", "a b", "a\n", "ä", strings.Repeat("x", MaxRequestID+1)} {
		if _, err := c.Add(id); !errors.Is(err, ErrRequestID) {
			t.Errorf("%q: %v", id, err)
		}
	}
	add(t, c, "a")
	_ = c.file.Close() // as if the disk were gone
	if _, err := c.Add("b"); !errors.Is(err, ErrCounterFailed) {
		t.Errorf("write error: %v", err)
	}
	if got := add(t, c, "a"); got != 1 {
		t.Errorf("a known id got %d", got)
	}
	if got := len(c.Counts(0)); got != 1 {
		t.Errorf("%d counts, one was acknowledged", got)
	}
}
