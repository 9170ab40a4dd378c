package witness

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	bolt "go.etcd.io/bbolt"

	"github.com/coloctl/coloctl/colo/arbiter"
	"github.com/coloctl/coloctl/colo/arbiter/internal/recordfile"
)

func filled(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "w.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	r := rec(1, "a", "a")
	if _, err := s.do("vm", request{Op: opAdvance, Next: &r}, "a", "", 1, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// edit changes the file behind the package's back.
func edit(t *testing.T, path string, do func(tx *bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(do), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestBadFiles(t *testing.T) {
	for what, c := range map[string]struct {
		harm func(t *testing.T, path string) error
		want error
	}{
		"empty":     {func(_ *testing.T, p string) error { return os.Truncate(p, 0) }, ErrCorrupt},
		"truncated": {func(_ *testing.T, p string) error { return os.Truncate(p, 8192) }, ErrCorrupt},
		"text":      {func(_ *testing.T, p string) error { return os.WriteFile(p, []byte("hello, hello, hello"), 0o600) }, ErrCorrupt},
		"another bbolt file": {func(t *testing.T, p string) error {
			edit(t, p, func(tx *bolt.Tx) error { return tx.DeleteBucket([]byte("meta")) })
			return nil
		}, ErrCorrupt},
		"a changed digit": {func(t *testing.T, p string) error {
			edit(t, p, func(tx *bolt.Tx) error {
				b := tx.Bucket(recordfile.Records)
				raw := append([]byte(nil), b.Get([]byte("vm"))...)
				for i := len(raw) - 1; ; i-- {
					if raw[i] == '1' {
						raw[i] = '9'
						return b.Put([]byte("vm"), raw)
					}
				}
			})
			return nil
		}, ErrCorrupt},
		"a record under another key": {func(t *testing.T, p string) error {
			edit(t, p, func(tx *bolt.Tx) error {
				b := tx.Bucket(recordfile.Records)
				return b.Put([]byte("vm2"), append([]byte(nil), b.Get([]byte("vm"))...))
			})
			return nil
		}, ErrCorrupt},
		"a newer schema": {func(t *testing.T, p string) error {
			edit(t, p, func(tx *bolt.Tx) error {
				return recordfile.Put(tx.Bucket([]byte("meta")), []byte("file"), recordfile.Meta{Schema: recordfile.Schema + 1, Kind: kindWitness, Instance: "x"})
			})
			return nil
		}, ErrNewerSchema},
		"no folder": {func(_ *testing.T, p string) error { return os.RemoveAll(filepath.Dir(p)) }, os.ErrNotExist},
	} {
		path := filled(t)
		if err := c.harm(t, path); err != nil {
			t.Fatal(err)
		}
		before, _ := os.ReadFile(path)
		s, err := Open(path)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
		if err == nil {
			_ = s.Close()
		}
		if after, _ := os.ReadFile(path); string(after) != string(before) {
			t.Errorf("%s: the file was changed", what)
		}
	}
	path := filled(t)
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrLocked) {
		t.Errorf("open twice: %v", err)
	}
	if _, err := openLedger(path); !errors.Is(err, ErrLocked) {
		t.Errorf("as a ledger, open: %v", err)
	}
	_ = s.Close()
	if _, err := openLedger(path); !errors.Is(err, ErrCorrupt) {
		t.Errorf("as a ledger: %v", err)
	}
}

func TestStopsAfterAFailedWrite(t *testing.T) {
	s, err := Open(filled(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	_ = s.stop(errors.New("input/output error"))
	if _, err := s.do("vm", request{Op: opGet}, "a", "", 1, nil); !errors.Is(err, ErrStopped) {
		t.Errorf("get: %v", err)
	}
	r := rec(2, "a", "a")
	if _, err := s.do("vm", request{Op: opAdvance, Next: &r}, "a", "", 1, nil); !errors.Is(err, ErrStopped) {
		t.Errorf("advance: %v", err)
	}
	if _, err := s.Records(); !errors.Is(err, ErrStopped) {
		t.Errorf("list: %v", err)
	}
}

// TestRepeats: one call is carried out once, and never late.
func TestRepeats(t *testing.T) {
	s, err := Open(filled(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	forget := func(call string, attempt int) error {
		_, err := s.do("vm", request{Op: opForget, Generation: 1}, "a", call, attempt, nil)
		return err
	}
	claim := func(call string, attempt int, r arbiter.Record) (answer, error) {
		return s.do("vm", request{Op: opAdvance, Next: &r}, r.By, call, attempt, nil)
	}
	if err := forget("f", 2); err != nil {
		t.Fatal(err)
	}
	if _, err := claim("c", 1, rec(1, "b", "a", "b")); err != nil {
		t.Fatal(err)
	}
	if err := forget("f", 1); err == nil {
		t.Error("the first attempt, late, was carried out")
	}
	if err := forget("f", 3); err != nil {
		t.Errorf("a third attempt: %v", err)
	}
	if ans, err := s.do("vm", request{Op: opGet}, "a", "", 1, nil); err != nil || ans.Record == nil {
		t.Errorf("the new record is gone: %+v, %v", ans, err)
	}
	if _, err := claim("d", 1, rec(2, "a", "a")); err != nil {
		t.Fatal(err)
	}
	if ans, err := claim("c", 2, rec(1, "b", "a", "b")); err != nil || !ans.Record.Equal(rec(1, "b", "a", "b")) {
		t.Errorf("the answer to a call that was carried out before: %+v, %v", ans, err)
	}
	gone := errors.New("gone")
	r := rec(3, "a", "a")
	if _, err := s.do("vm", request{Op: opAdvance, Next: &r}, "a", "e", 1, func() error { return gone }); !errors.Is(err, gone) {
		t.Errorf("a caller that has gone: %v", err)
	}
	if ans, err := s.do("vm", request{Op: opGet}, "a", "", 1, nil); err != nil || ans.Record.Generation != 2 {
		t.Errorf("its claim was carried out: %+v, %v", ans, err)
	}
}
