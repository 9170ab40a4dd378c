package state

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// childMode makes the test binary a child that is to be killed: "write", "hold" or "migrate", with the file as the argument.
const childMode = "COLOCTL_STATE_CHILD"

func TestMain(m *testing.M) {
	mode, path, _ := strings.Cut(os.Getenv(childMode), " ")
	var err error
	switch mode {
	case "":
		os.Exit(m.Run())
	case "write":
		err = writeForEver(path)
	case "hold":
		var s *Store
		if s, err = Open(path, nil); err == nil {
			fmt.Println("open", s.Path())
			_, err = io.Copy(io.Discard, os.Stdin) // until it is killed, or the test is gone
		}
	case "migrate":
		opt, _ := (*Options)(nil).withDefaults()
		var s *Store
		if s, err = open(path, opt, future(nil)); err == nil {
			fmt.Println("open", s.Path())
			err = s.Close()
		}
	}
	fmt.Println("error", err)
	os.Exit(1)
}

func child(t *testing.T, mode, path string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childMode+"="+mode+" "+path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	ok(t, err)
	_, err = cmd.StdinPipe()
	ok(t, err)
	ok(t, cmd.Start())
	return cmd, bufio.NewScanner(out)
}

// acked is what the writer printed after the store had said that it is durable.
type acked struct {
	Round   uint64 // of the last commit: every value of it is made from it
	Seq     uint64 // of the last history entry
	Begun   uint64 // the last intent that was begun,
	Ended   uint64 // and the last that was ended
	Deleted uint64 // round in which the second VM was last deleted

}

// writeForEver does what a daemon does, as fast as it can, and reports each commit.
func writeForEver(path string) error {
	s, err := Open(path, &Options{History: 25})
	if err != nil {
		return err
	}
	var a acked
	var open uint64
	if list, err := s.OpenIntents(); err != nil {
		return err
	} else if len(list) > 0 {
		open = list[0].ID
	}
	vm, err := s.Get("x")
	if errors.Is(err, ErrNotFound) {
		err = s.Create(VM{Name: "x"})
	}
	if err != nil {
		return err
	}
	for a.Round = vm.Generation + 1; ; a.Round++ {
		err := s.Do(func(tx *Tx) error {
			if open != 0 {
				if err := tx.StepDone(open, 0, nil); err != nil {
					return err
				}
				if err := tx.End(open, OutcomeDone); err != nil {
					return err
				}
				a.Ended, open = open, 0
			}
			if a.Round%2 == 0 {
				if open, err = tx.Begin(Intent{VM: "x", Plan: "p", Generation: a.Round, Steps: []Step{{Name: "one"}}}); err != nil {
					return err
				}
				a.Begun = open
			}
			switch a.Round % 5 {
			case 0:
				if err := tx.Delete("y"); err != nil && !errors.Is(err, ErrNotFound) {
					return err
				}
				a.Deleted = a.Round
			case 1:
				if err := tx.Create(VM{Name: "y", Generation: a.Round, Spec: make([]byte, a.Round%9000)}); err != nil && !errors.Is(err, ErrExists) {
					return err
				}
				if _, err := tx.Ports("y", []string{"nbd"}, nil); err != nil {
					return err
				}
			}
			if a.Seq, err = tx.Append(Entry{VM: "x", Kind: "round", Generation: a.Round, Text: strings.Repeat("x", int(a.Round%700))}); err != nil {
				return err
			}
			return tx.Update("x", func(v *VM) error {
				v.Generation, v.Phase = a.Round, fmt.Sprint(a.Round)
				v.Disks = map[string]Disk{"vda": {Generation: a.Round, InSync: a.Round%2 == 0}}
				v.Spec = make([]byte, a.Round*37%6000)
				return nil
			})
		})
		if err != nil {
			return err
		}
		line, _ := json.Marshal(a)
		fmt.Println(string(line))
	}
}

// TestKill kills a writer again and again. After each kill, on reopening (which checks the whole file, see inspect):
//
//  1. every acknowledged commit is there, and at most one more, whose acknowledgement didn't get out;
//  2. that one is there as a whole: VM, disk, history and journal are of the same round;
//  3. numbers given away weren't given away again;
//  4. what was deleted stays so, with its ports.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	until, kills, commits := time.Now().Add(8*time.Second), 0, uint64(0)
	if testing.Short() {
		until = time.Now().Add(2 * time.Second)
	}
	var last acked
	// On a loaded machine few lives are long enough to get to a commit.
	for least := uint64(10); time.Now().Before(until) || commits < least; {
		cmd, lines := child(t, "write", path)
		// Some are killed while they open or even create the file, others in the middle of writing.
		timer := time.AfterFunc(time.Duration(r.Int64N(int64(120*time.Millisecond))), func() { _ = cmd.Process.Kill() })
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "error") {
				t.Errorf("the writer failed: %s", lines.Text())
				break
			}
			var a acked
			if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
				break // the last line is torn
			}
			if a.Round <= last.Round || a.Seq <= last.Seq || a.Begun != 0 && a.Begun < last.Begun {
				t.Errorf("%+v after %+v", a, last)
			}
			last = a
			commits++
		}
		_ = cmd.Wait()
		timer.Stop()
		kills++
		s, err := Open(path, &Options{History: 25})
		if err != nil {
			t.Fatalf("after kill %d: %v", kills, err)
		}
		checkAfterKill(t, s, &last)
		ok(t, s.Close())
		if t.Failed() {
			t.Fatalf("after kill %d; acknowledged was %+v", kills, last)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	ok(t, err)
	if len(entries) != 1 {
		t.Errorf("left in the folder: %v", entries)
	}
	t.Logf("%d kills, %d acknowledged commits", kills, commits)
}

// checkAfterKill moves last on to what is there.
func checkAfterKill(t *testing.T, s *Store, last *acked) {
	t.Helper()
	x, err := s.Get("x")
	if errors.Is(err, ErrNotFound) {
		if last.Round != 0 {
			t.Error("the VM is gone")
		}
		return
	}
	ok(t, err)
	if x.Generation < last.Round || x.Generation > last.Round+1 {
		t.Errorf("round %d, acknowledged was %d", x.Generation, last.Round)
	}
	if x.Generation == 0 {
		return // created, and nothing more
	}
	if x.Phase != fmt.Sprint(x.Generation) || x.Disks["vda"].Generation != x.Generation || len(x.Spec) != int(x.Generation*37%6000) {
		t.Errorf("not of one round: %.200v", x)
	}
	hist, err := s.History(Query{VM: "x"})
	ok(t, err)
	if n := len(hist); n == 0 || n > 25 || hist[n-1].Generation != x.Generation {
		t.Errorf("round %d, history of %d ends with %+v", x.Generation, n, hist[max(0, n-1):])
	}
	for i := 1; i < len(hist); i++ {
		if hist[i].Seq != hist[i-1].Seq+1 || hist[i].Generation != hist[i-1].Generation+1 {
			t.Errorf("history: %d/%d after %d/%d", hist[i].Seq, hist[i].Generation, hist[i-1].Seq, hist[i-1].Generation)
		}
	}
	open, err := s.OpenIntents()
	ok(t, err)
	if (len(open) == 1) != (x.Generation%2 == 0) || len(open) == 1 && open[0].Generation != x.Generation {
		t.Errorf("round %d, open plans %+v", x.Generation, open)
	}
	if last.Ended != 0 {
		if in, err := s.Intent(last.Ended); err != nil || in.Outcome != OutcomeDone || in.Steps[0].Status != StepDone {
			t.Errorf("plan %d ended: %+v %v", last.Ended, in, err)
		}
	}
	_, err = s.Get("y")
	ports, perr := s.AllPorts()
	ok(t, perr)
	there := err == nil
	if x.Generation >= 5 && there != (x.Generation%5 != 0) || there != (len(ports["y"]) == 1) {
		t.Errorf("round %d, second VM there: %v, its ports: %v", x.Generation, there, ports)
	}
	last.Round = x.Generation
}

func TestLockedByAnother(t *testing.T) {
	path := filled(t)
	cmd, lines := child(t, "hold", path)
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	if !lines.Scan() || !strings.HasPrefix(lines.Text(), "open") {
		t.Fatalf("the holder says %q", lines.Text())
	}
	_, err := Open(path, &Options{LockTimeout: 60 * time.Millisecond})
	var le *LockedError
	if !errors.As(err, &le) || !errors.Is(err, ErrLocked) || le.Path != path {
		t.Fatalf("%v", err)
	}
	if le.PID != cmd.Process.Pid || le.Name == "" {
		t.Errorf("held by %d (%s), really by %d", le.PID, le.Name, cmd.Process.Pid)
	}
	// Who waits gets it when the holder dies.
	time.AfterFunc(100*time.Millisecond, func() { _ = cmd.Process.Kill() })
	s, err := Open(path, &Options{LockTimeout: 20 * time.Second})
	ok(t, err)
	ok(t, s.Close())
}

// A migration that is killed leaves the old file or the new one.
func TestKillMigration(t *testing.T) {
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	old, migrated := 0, 0
	for range 6 {
		path := filled(t)
		cmd, lines := child(t, "migrate", path)
		timer := time.AfterFunc(time.Duration(r.Int64N(int64(60*time.Millisecond))), func() { _ = cmd.Process.Kill() })
		for lines.Scan() {
			if strings.HasPrefix(lines.Text(), "error") && lines.Text() != "error <nil>" {
				t.Error(lines.Text())
			}
		}
		_ = cmd.Wait()
		timer.Stop()
		s, err := Open(path, nil)
		if err == nil {
			old++
			ok(t, s.Close())
			continue
		}
		wantErr(t, err, ErrNewerSchema)
		migrated++
		s = openStore(t, BackupPath(path, current.version), nil)
		ok(t, s.Close())
		opt, _ := (*Options)(nil).withDefaults()
		s, err = open(path, opt, future(nil))
		ok(t, err)
		ok(t, s.Close())
	}
	t.Logf("%d old, %d migrated", old, migrated)
}
