package lab

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// folders gives a test roots of its own.
func folders(t *testing.T) (state, temp string) {
	t.Helper()
	state, temp = t.TempDir(), t.TempDir()
	t.Setenv("XDG_STATE_HOME", state)
	t.Setenv("TMPDIR", temp)
	return state, temp
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestNamedFolder(t *testing.T) {
	state, _ := folders(t)
	f, err := MakeFolder("one")
	if err != nil {
		t.Fatal(err)
	}
	if f.Path != filepath.Join(state, "coloctl", "lab", "one") {
		t.Errorf("got %s", f.Path)
	}
	if _, err := MakeFolder("one"); !errors.Is(err, ErrExists) {
		t.Errorf("a second one: got %v", err)
	}
	if got := Sweep(); len(got) != 0 || !exists(f.Path) {
		t.Errorf("swept %v while it is in use", got)
	}
	// What a crash leaves: the folder, and a lock that nobody holds.
	if err := f.Release(); err != nil {
		t.Fatal(err)
	}
	again, err := MakeFolder("one")
	if err != nil {
		t.Fatalf("what a crash left isn't replaced: %v", err)
	}
	if err := again.Remove(); err != nil || exists(again.Path) {
		t.Errorf("not removed: %v", err)
	}
	for _, bad := range []string{"", "-x", "../x", "a/b", "A", "x.y", "a234567890123456789012345678901234"} {
		if _, err := NamedFolder(bad); !errors.Is(err, ErrName) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}

func TestRelativeStateHomeIsIgnored(t *testing.T) {
	t.Setenv("XDG_STATE_HOME", "relative")
	t.Setenv("HOME", "/home/somebody")
	if got, err := StateRoot(); err != nil || got != "/home/somebody/.local/state/coloctl/lab" {
		t.Errorf("got %s, %v", got, err)
	}
}

func TestSweep(t *testing.T) {
	_, temp := folders(t)
	used, err := MakeFolder("")
	if err != nil {
		t.Fatal(err)
	}
	defer used.Remove()
	kept, err := MakeFolder("")
	if err != nil {
		t.Fatal(err)
	}
	if err := kept.Keep(); err != nil {
		t.Fatal(err)
	}
	crashed, err := MakeFolder("")
	if err != nil {
		t.Fatal(err)
	}
	if err := crashed.Release(); err != nil {
		t.Fatal(err)
	}
	fresh, foreign, old := filepath.Join(temp, runPrefix+"starting"), filepath.Join(temp, "other"), filepath.Join(temp, runPrefix+"old")
	for _, dir := range []string{fresh, foreign, old} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	past := time.Now().Add(-2 * unlockedAge)
	if err := errors.Join(os.Chtimes(old, past, past), os.Chtimes(kept.Path, past, past)); err != nil {
		t.Fatal(err)
	}
	Sweep()
	for path, want := range map[string]bool{used.Path: true, kept.Path: true, fresh: true, foreign: true, crashed.Path: false, old: false} {
		if exists(path) != want {
			t.Errorf("%s: exists is %v, want %v", filepath.Base(path), !want, want)
		}
	}
}
