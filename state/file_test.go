package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// filled returns the path of a closed file with something of everything in it.
func filled(t *testing.T) string { t.Helper(); return filledFile(t) }

func filledFile(t testing.TB) string {
	t.Helper()
	s, err := Open(filepath.Join(t.TempDir(), "state.db"), nil)
	ok(t, err)
	ok(t, s.Create(fullVM()))
	for range 3 { // commits, so that there are free pages
		ok(t, s.Do(func(tx *Tx) error {
			for i := range 20 {
				if _, err := tx.Append(Entry{VM: "db", Kind: "k", Text: strings.Repeat("x", 150), Generation: uint64(i)}); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	id, err := s.Begin(Intent{VM: "db", Plan: "p", Steps: []Step{{Name: "one"}}})
	ok(t, err)
	ok(t, s.StepDone(id, 0, nil))
	_, err = s.Ports("db", []string{"nbd"}, nil)
	ok(t, err)
	ok(t, s.Close())
	return s.Path()
}

// contents is everything a reader can get, for comparing.
func contents(t *testing.T, s *Store) string {
	t.Helper()
	list, err := s.List()
	ok(t, err)
	open, err := s.OpenIntents()
	ok(t, err)
	ended, err := s.EndedIntents()
	ok(t, err)
	hist, err := s.History(Query{})
	ok(t, err)
	ports, err := s.AllPorts()
	ok(t, err)
	node, err := s.Node()
	ok(t, err)
	b, err := json.Marshal([]any{list, open, ended, hist, ports, node})
	ok(t, err)
	return string(b)
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	ok(t, err)
	return b
}

func TestFolder(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(filepath.Join(dir, "missing", "state.db"), nil)
	wantErr(t, err, ErrNoFolder)
	if _, err := os.Stat(filepath.Join(dir, "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the folder was made")
	}
	ok(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	_, err = Open(filepath.Join(dir, "file", "state.db"), nil)
	if err == nil {
		t.Error("opened below a file")
	}
	ok(t, os.Mkdir(filepath.Join(dir, "state.db"), 0o700))
	_, err = Open(filepath.Join(dir, "state.db"), nil)
	wantErr(t, err, ErrCorrupt)
	var oe *OpenError
	if !errors.As(err, &oe) || oe.Path != filepath.Join(dir, "state.db") || oe.Hint == "" {
		t.Errorf("%#v", err)
	}
}

// readOnly makes dir unwritable also for root, or skips where this isn't allowed.
func readOnly(t *testing.T, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		ok(t, os.Chmod(dir, 0o500))
		t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
		return
	}
	mountHere(t, dir, dir, "", syscall.MS_BIND, "")
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
}

func mountHere(t *testing.T, source, dir, kind string, flags uintptr, data string) {
	t.Helper()
	if err := syscall.Mount(source, dir, kind, flags, data); err != nil {
		t.Skipf("this test mounts, which isn't allowed here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

func TestNotWritable(t *testing.T) {
	path := filled(t)
	before := readFile(t, path)
	readOnly(t, filepath.Dir(path))
	_, err := Open(path, nil)
	wantErr(t, err, ErrNotWritable)
	_, err = Open(filepath.Join(filepath.Dir(path), "new.db"), nil)
	wantErr(t, err, ErrNotWritable)
	if !bytes.Equal(before, readFile(t, path)) {
		t.Error("the file changed")
	}
}

var damageSeed = flag.Uint64("damage-seed", 1, "what TestDamage damages")

// TestDamage damages a file in many ways. Each must be reported as damage, with the file left as it was, or be harmless: then everything
// in it reads as before. What must never happen is a crash, or other contents.
func TestDamage(t *testing.T) {
	path := filled(t)
	good := readFile(t, path)
	s := openStore(t, path, nil)
	want := contents(t, s)
	ok(t, s.Close())
	check := func(name string, bad []byte, harmless bool) (reported bool) {
		t.Helper()
		p := filepath.Join(t.TempDir(), "state.db")
		ok(t, os.WriteFile(p, bad, 0o600))
		s, err := Open(p, nil)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewerSchema) {
				t.Errorf("%s: %v", name, err)
			}
			if !bytes.Equal(bad, readFile(t, p)) {
				t.Errorf("%s: the file was changed", name)
			}
			// The lock is free, too.
			if f, err := os.Open(p); err != nil {
				t.Error(err)
			} else if lerr := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); lerr != nil {
				t.Errorf("%s: the lock was kept: %v", name, lerr)
			} else {
				_ = f.Close()
			}
			return true
		}
		defer func() { _ = s.Close() }()
		if !harmless {
			t.Errorf("%s: not noticed", name)
		}
		if got := contents(t, s); got != want {
			t.Errorf("%s: other contents: %.300s", name, got)
		}
		return false
	}
	check("empty", nil, false)
	check("text", []byte("name: db\n"), false)
	check("zeros", make([]byte, len(good)), false)
	check("one page", good[:4096], false)
	check("three pages", good[:3*4096], false)
	check("five pages", good[:5*4096], false)
	check("no meta pages", append(make([]byte, 8192), good[8192:]...), false)
	// One of the two meta pages may be torn: the other one is the previous commit.
	check("first meta page", append(make([]byte, 4096), good[4096:]...), true)

	r := rand.New(rand.NewPCG(*damageSeed, 2))
	reported := 0
	const rounds = 150
	for i := range rounds {
		bad := bytes.Clone(good)
		at := 2*4096 + r.IntN(len(bad)-2*4096) // not in the meta pages, where the other one takes over with older contents
		what := fmt.Sprintf("round %d: ", i)
		switch r.IntN(3) {
		case 0:
			bad[at] ^= 1 << r.IntN(8)
			what += fmt.Sprintf("bit at %d", at)
		case 1:
			page := at / 4096 * 4096
			for j := range 32 {
				bad[page+j] = byte(r.Uint32()) // headers and first elements hurt most
			}
			what += fmt.Sprintf("header of page %d", page/4096)
		case 2:
			n := min(r.IntN(3000), len(bad)-at)
			clear(bad[at : at+n])
			what += fmt.Sprintf("%d zeros at %d", n, at)
		}
		if bytes.Equal(bad, good) {
			continue
		}
		if check(what, bad, true) {
			reported++
		}
	}
	t.Logf("%d of %d were reported, the others hit free space", reported, rounds)
	if reported < rounds/15 {
		t.Errorf("only %d of %d were reported", reported, rounds)
	}
}

// A value that is changed behind our back by a correct bbolt is damage, too.
func TestForeignValue(t *testing.T) {
	// Each with the words by which the right check is recognized, as several would notice.
	words := map[string]string{
		"no envelope": "no envelope", "moved": "checksum", "no JSON": "JSON", "wrong type": "cannot unmarshal", "broken rule": "generation 0",
		"two open plans": "two open", "no schema": "without our schema", "missing": "values instead of",
	}
	for name, change := range map[string]func(*bolt.Tx) error{
		"missing":     func(tx *bolt.Tx) error { return tx.Bucket([]byte("vms")).Delete([]byte("db")) },
		"no envelope": func(tx *bolt.Tx) error { return tx.Bucket([]byte("vms")).Put([]byte("db"), []byte(`{"name":"db"}`)) },
		"moved": func(tx *bolt.Tx) error {
			b := tx.Bucket([]byte("vms"))
			return b.Put([]byte("copy"), bytes.Clone(b.Get([]byte("db"))))
		},
		"no JSON": func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("vms")).Put([]byte("x"), seal("vms", "x", []byte("{")))
		},
		"wrong type": func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("vms")).Put([]byte("x"), seal("vms", "x", []byte(`{"name":1}`)))
		},
		"broken rule": func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("vms")).Put([]byte("x"), seal("vms", "x", []byte(`{"name":"x","members":["a"]}`)))
		},
		"two open plans": func(tx *bolt.Tx) error {
			v := []byte(`{"id":9,"vm":"db","plan":"p","steps":[]}`)
			return tx.Bucket([]byte("intents")).Put([]byte("9"), seal("intents", "9", v))
		},
		"no schema": func(tx *bolt.Tx) error { return tx.Bucket([]byte("meta")).Delete([]byte("schema")) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filled(t)
			db, err := bolt.Open(path, 0o600, nil)
			ok(t, err)
			ok(t, db.Update(change))
			ok(t, db.Close())
			before := readFile(t, path)
			_, err = Open(path, nil)
			wantErr(t, err, ErrCorrupt)
			if !strings.Contains(err.Error(), words[name]) {
				t.Errorf("%v: doesn't say %q", err, words[name])
			}
			if !bytes.Equal(before, readFile(t, path)) {
				t.Error("the file changed")
			}
		})
	}
}

func TestLockedHere(t *testing.T) {
	s := tempStore(t, nil)
	began := time.Now()
	_, err := Open(s.Path(), &Options{LockTimeout: 60 * time.Millisecond})
	wantErr(t, err, ErrLocked)
	var le *LockedError
	if !errors.As(err, &le) || le.Path != s.Path() || le.PID != os.Getpid() && le.PID != 0 {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("waited %v", took)
	}
}

// A creation or copy that was killed leaves a file under another name, which the next Open removes; nothing else in the folder is touched.
func TestLeftovers(t *testing.T) {
	dir := t.TempDir()
	left, foreign := filepath.Join(dir, ".state.db.new-123"), filepath.Join(dir, ".other.db.new-123")
	for _, p := range []string{left, foreign} {
		ok(t, os.WriteFile(p, []byte("x"), 0o600))
	}
	s := openStore(t, filepath.Join(dir, "state.db"), nil)
	if _, err := os.Stat(left); !errors.Is(err, os.ErrNotExist) {
		t.Error("leftover not removed")
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Error(err)
	}
	if fi, err := os.Stat(s.Path()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", fi.Mode(), err)
	}
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	mountHere(t, "tmpfs", dir, "tmpfs", 0, "size=256k")
	s := openStore(t, filepath.Join(dir, "state.db"), &Options{History: 10})
	ok(t, s.Create(fullVM()))
	var err error
	n := 0
	for ; n < 1000 && err == nil; n++ {
		_, err = s.Append(Entry{VM: fmt.Sprintf("v%d", n), Kind: "k", Text: strings.Repeat("x", 5000)})
	}
	wantErr(t, err, ErrFull)
	// It goes on: what was acknowledged is there, and room lets writes succeed again.
	list, err := s.History(Query{})
	ok(t, err)
	if len(list) != n-1 {
		t.Errorf("%d entries, %d were acknowledged", len(list), n-1)
	}
	_, err = Open(filepath.Join(dir, "other.db"), nil)
	wantErr(t, err, ErrFull)
	ok(t, s.Close())
	s = openStore(t, s.Path(), nil) // opening needs no room
	ok(t, syscall.Mount("", dir, "", syscall.MS_REMOUNT, "size=4m"))
	ok(t, s.Update("db", func(v *VM) error { v.Generation++; return nil }))
	ok(t, s.Close())
	s = openStore(t, s.Path(), nil)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left in the folder: %v %v", entries, err)
	}
	v, err := s.Get("db")
	ok(t, err)
	if v.Generation != 8 {
		t.Errorf("generation %d", v.Generation)
	}
}
