package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

// tempStore opens a new store; again with the same path after closing it.
func tempStore(t *testing.T, o *Options) *Store {
	t.Helper()
	return openStore(t, filepath.Join(t.TempDir(), "state.db"), o)
}

func openStore(t *testing.T, path string, o *Options) *Store {
	t.Helper()
	s, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func wantErr(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got %v, want %v", err, want)
	}
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func fullVM() VM {
	return VM{
		Name: "db", Spec: []byte("name: db\n"), Role: RolePrimary, Phase: "protected", Reason: "all is <well>", Generation: 7, Members: []string{"a", "b"}, Peer: "b",
		Base:   &Base{Peer: "b", Generation: 6},
		Resync: &Resync{ID: "R", Peer: "b", Mode: "checksum", Compared: map[string]int64{"vda": 65536}}, Target: "S",
		Verify:   &Verify{Compared: 65536, Differed: 512},
		Disks:    map[string]Disk{"vda": {Generation: 7, InSync: true, Bitmap: "colo-sync", Size: 1 << 30}, "vdb": {Generation: 3}},
		Instance: &Instance{PID: 4711, StartTicks: 99, BootID: "x", Dir: "/run/db", QMP: "/run/db/q", Rescue: "/run/db/r", Argv: []string{"qemu", "-S"}, Ports: map[string]int{"nbd": 19000}},
	}
}

func TestVMRoundTrip(t *testing.T) {
	s := tempStore(t, nil)
	ok(t, s.Create(fullVM()))
	wantErr(t, s.Create(fullVM()), ErrExists)
	ok(t, s.Create(VM{Name: "another"}))
	path := s.Path()
	ok(t, s.Close())
	s = openStore(t, path, nil)
	got, err := s.Get("db")
	ok(t, err)
	if got.ID == "" || time.Since(got.Updated) > time.Minute {
		t.Errorf("ID %q, updated %v", got.ID, got.Updated)
	}
	want := fullVM()
	want.ID, want.Updated = got.ID, got.Updated
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	list, err := s.List()
	ok(t, err)
	if len(list) != 2 || list[0].Name != "another" || list[1].Name != "db" {
		t.Errorf("list: %+v", list)
	}
	ok(t, s.Delete("db"))
	wantErr(t, s.Delete("db"), ErrNotFound)
	_, err = s.Get("db")
	wantErr(t, err, ErrNotFound)
	wantErr(t, s.Update("db", func(*VM) error { return nil }), ErrNotFound)
}

// A field added to VM and forgotten in Clone would let a caller change the stored past.
func TestCloneSharesNothing(t *testing.T) {
	v := fullVM()
	c := v.Clone()
	if d := cmp.Diff(v, c); d != "" {
		t.Fatal(d)
	}
	var shared func(path string, a, b reflect.Value)
	shared = func(path string, a, b reflect.Value) {
		switch a.Kind() {
		case reflect.Slice, reflect.Map, reflect.Pointer:
			if a.IsNil() {
				t.Errorf("%s isn't set by this test", path)
			} else if a.Pointer() == b.Pointer() {
				t.Errorf("%s is shared", path)
			}
			if a.Kind() == reflect.Pointer {
				shared(path, a.Elem(), b.Elem())
			}
		case reflect.Struct:
			if a.Type() == reflect.TypeFor[time.Time]() {
				return
			}
			for i := range a.NumField() {
				shared(path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))
			}
		}
	}
	shared("VM", reflect.ValueOf(v), reflect.ValueOf(c))
}

func TestUpdateKeepsTheRules(t *testing.T) {
	s := tempStore(t, nil)
	ok(t, s.Create(fullVM()))
	before, err := s.Get("db")
	ok(t, err)
	for name, c := range map[string]struct {
		change func(*VM)
		want   error
	}{
		"generation falls":        {func(v *VM) { v.Generation = 6; v.Disks = nil }, ErrGenerationFell},
		"disk's generation falls": {func(v *VM) { v.Disks["vda"] = Disk{Generation: 6} }, ErrGenerationFell},
		"disk beyond the VM":      {func(v *VM) { v.Disks["vda"] = Disk{Generation: 8} }, ErrInvalid},
		"renamed":                 {func(v *VM) { v.Name = "x" }, ErrInvalid},
		"another ID":              {func(v *VM) { v.ID = "x" }, ErrInvalid},
		"unknown role":            {func(v *VM) { v.Role = "king" }, ErrInvalid},
		"nameless member":         {func(v *VM) { v.Members = []string{""} }, ErrInvalid},
		"nameless disk":           {func(v *VM) { v.Disks[""] = Disk{} }, ErrInvalid},
		"PID 0":                   {func(v *VM) { v.Instance.PID = 0 }, ErrInvalid},
	} {
		t.Run(name, func(t *testing.T) {
			wantErr(t, s.Update("db", func(v *VM) error { c.change(v); return nil }), c.want)
		})
	}
	mine := errors.New("mine")
	wantErr(t, s.Update("db", func(v *VM) error { v.Phase = "x"; return mine }), mine)
	after, err := s.Get("db")
	ok(t, err)
	if d := cmp.Diff(before, after); d != "" {
		t.Errorf("refused changes left a trace: %s", d)
	}
	for _, name := range []string{"", "UPPER", "a/b", "@node", "-x"} {
		wantErr(t, s.Create(VM{Name: name}), ErrInvalid)
	}
	ok(t, s.Update("db", func(v *VM) error {
		v.Generation, v.Members, v.Instance = 8, []string{"a"}, nil
		v.Disks["vda"] = Disk{Generation: 8, InSync: true}
		delete(v.Disks, "vdb")
		return nil
	}))
	got, err := s.Get("db")
	ok(t, err)
	if got.Generation != 8 || got.Instance != nil || len(got.Disks) != 1 || !got.Updated.After(before.Updated) {
		t.Errorf("%+v", got)
	}
}

// What changes nothing costs nothing: no write, no sync.
func TestNoChangeNoWrite(t *testing.T) {
	s := tempStore(t, nil)
	ok(t, s.Create(fullVM()))
	_, err := s.Ports("db", []string{"nbd"}, nil)
	ok(t, err)
	before, err := os.ReadFile(s.Path())
	ok(t, err)
	ok(t, s.Update("db", func(v *VM) error { v.Phase = "x"; v.Phase = "protected"; return nil }))
	_, err = s.Ports("db", []string{"nbd"}, nil)
	ok(t, err)
	ok(t, s.ReleasePorts("nobody"))
	ok(t, s.DropHistory("nobody"))
	after, err := os.ReadFile(s.Path())
	ok(t, err)
	if !bytes.Equal(before, after) {
		t.Error("the file changed")
	}
}

func TestDoIsOneTransaction(t *testing.T) {
	s := tempStore(t, nil)
	mine := errors.New("mine")
	change := func(tx *Tx) error {
		if err := tx.Create(VM{Name: "x"}); err != nil {
			return err
		}
		if _, err := tx.Begin(Intent{VM: "x", Plan: "p"}); err != nil {
			return err
		}
		_, err := tx.Append(Entry{Kind: "k"})
		return err
	}
	wantErr(t, s.Do(func(tx *Tx) error { ok(t, change(tx)); return mine }), mine)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("panic swallowed")
			}
		}()
		_ = s.Do(func(tx *Tx) error { ok(t, change(tx)); panic("x") })
	}()
	list, err := s.List()
	ok(t, err)
	open, err := s.OpenIntents()
	ok(t, err)
	hist, err := s.History(Query{})
	ok(t, err)
	if len(list)+len(open)+len(hist) != 0 {
		t.Errorf("%v %v %v", list, open, hist)
	}
	ok(t, s.Do(change))
	wantErr(t, s.Read(func(tx *Tx) error { return tx.Create(VM{Name: "y"}) }), ErrReadOnly)
	wantErr(t, s.Read(func(tx *Tx) error { return tx.Delete("x") }), ErrReadOnly)
	wantErr(t, s.Read(func(tx *Tx) error { _, err := tx.Append(Entry{Kind: "k"}); return err }), ErrReadOnly)
}

func TestClosed(t *testing.T) {
	defer goleak.VerifyNone(t)
	s := tempStore(t, nil)
	ok(t, s.Close())
	ok(t, s.Close())
	_, err := s.Get("x")
	wantErr(t, err, ErrClosed)
	wantErr(t, s.Create(VM{Name: "x"}), ErrClosed)
}

func TestNode(t *testing.T) {
	s := tempStore(t, &Options{Node: "east"})
	n, err := s.Node()
	ok(t, err)
	if n.Name != "east" || n.ID == "" || n.Incarnation != 0 {
		t.Errorf("%+v", n)
	}
	path := s.Path()
	for want := uint64(1); want < 4; want++ {
		got, err := s.NextIncarnation()
		ok(t, err)
		if got != want {
			t.Errorf("incarnation %d, want %d", got, want)
		}
		ok(t, s.Close())
		s = openStore(t, path, nil)
	}
	ok(t, s.Close())
	_, err = Open(path, &Options{Node: "west"})
	wantErr(t, err, ErrOtherNode)
	_, err = Open(path, &Options{Ports: PortRange{First: 5, Last: 4}})
	wantErr(t, err, ErrInvalid)
}

func TestConcurrentUse(t *testing.T) {
	s := tempStore(t, &Options{History: 20})
	ok(t, s.Create(VM{Name: "x"}))
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 15 {
				if err := s.Update("x", func(v *VM) error { v.Generation++; return nil }); err != nil {
					t.Error(err)
				}
				if _, err := s.Append(Entry{VM: "x", Kind: fmt.Sprint(i), Data: json.RawMessage(`{}`)}); err != nil {
					t.Error(err)
				}
				if _, err := s.History(Query{VM: "x"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	v, err := s.Get("x")
	ok(t, err)
	if v.Generation != 60 {
		t.Errorf("generation %d, want 60: an update was lost", v.Generation)
	}
}
