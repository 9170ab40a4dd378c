package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// workers are what the worker of a test's lab does, by its first argument.
var workers = map[string]func() error{
	"hello":  workHello,
	"orphan": workOrphan,
	"wait":   workWait,
	"ready":  workReady,
}

func TestMain(m *testing.M) {
	Main()
	if Inside() {
		work, ok := workers[os.Args[1]]
		if !ok {
			fmt.Fprintln(os.Stderr, "no such worker:", os.Args[1])
			os.Exit(2)
		}
		if err := work(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// inLab runs a worker and returns what it printed.
func inLab(t *testing.T, args ...string) string {
	t.Helper()
	out, err := inLabErr(t, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

func inLabErr(t *testing.T, args ...string) (string, error) {
	t.Helper()
	f, err := MakeFolder("")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Remove()
	out, err := os.CreateTemp(t.TempDir(), "out")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	err = Start(ctx, f, StartOptions{Args: args, Stdout: out, Stderr: out})
	needNamespaces(t, err)
	data, readErr := os.ReadFile(out.Name())
	if readErr != nil {
		t.Fatal(readErr)
	}
	return string(data), err
}

// needNamespaces skips where a lab is impossible, except in CI.
func needNamespaces(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, ErrPrecondition) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
}

func workHello() error {
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	links, err := filepath.Glob("/sys/class/net/*") // of the old /sys: must not matter
	if err != nil {
		return err
	}
	if err := os.WriteFile(Path("made-inside"), []byte("x"), 0o600); err != nil {
		return err
	}
	fmt.Println("procs", len(procs), "uid", os.Getuid(), "pid", os.Getpid(), "links", len(links) > 0)
	_, err = os.Stat(filepath.Join(FolderOutside(), "made-inside"))
	return err
}

func TestStartRunsTheWorkerIsolated(t *testing.T) {
	out := inLab(t, "hello")
	if !strings.HasPrefix(out, "procs 2 uid 0 ") {
		t.Errorf("want two processes, pid 1 and the worker, as uid 0; got %q", out)
	}
}

// An orphan must be reaped by pid 1, and the worker's own children must be left to os/exec.
func workOrphan() error {
	out, err := exec.Command("sh", "-c", "sleep 0.01 & echo $!").Output()
	if err != nil {
		return fmt.Errorf("os/exec lost its child: %w", err)
	}
	stat := filepath.Join("/proc", strings.TrimSpace(string(out)), "stat")
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(stat); errors.Is(err, os.ErrNotExist) {
			break
		}
		if time.Now().After(end) {
			return errors.New("the orphan was never reaped")
		}
	}
	for i := range 20 {
		err := exec.Command("sh", "-c", "exit 7").Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 7 {
			return fmt.Errorf("child %d: %w", i, err)
		}
	}
	return nil
}

func TestOrphansAreReaped(t *testing.T) { inLab(t, "orphan") }

func TestExitCode(t *testing.T) {
	_, err := inLabErr(t, "no-such-worker")
	var exit *ExitError
	if !errors.As(err, &exit) || exit.Code != 2 {
		t.Errorf("got %v, want exit code 2", err)
	}
}

// workWait starts a process in a session of its own, as the engine starts its QEMUs, prints a line and waits for SIGTERM.
func workWait() error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := os.WriteFile(Path("up"), nil, 0o600); err != nil {
		return err
	}
	fmt.Println("up")
	<-signals
	fmt.Println("interrupted")
	return nil
}

// labProcesses counts processes whose environment names the folder.
func labProcesses(t *testing.T, folder string) int {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range paths {
		env, err := os.ReadFile(p)
		if err == nil && bytes.Contains(env, []byte(envFolder+"="+folder)) {
			n++
		}
	}
	return n
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("timeout: %s", what)
		}
	}
}

func TestInterruptedLabEnds(t *testing.T) {
	f, err := MakeFolder("")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Remove()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Start(ctx, f, StartOptions{Args: []string{"wait"}, Stdout: w, Stderr: os.Stderr})
		w.Close()
	}()
	lines := bufio.NewReader(r)
	line, err := lines.ReadString('\n')
	if err != nil {
		err := <-done
		needNamespaces(t, err)
		t.Fatal(err)
	}
	if line != "up\n" || labProcesses(t, f.Path) != 3 {
		t.Fatalf("got %q and %d processes", line, labProcesses(t, f.Path))
	}
	cancel(ErrInterrupted)
	rest, _ := io.ReadAll(lines)
	if err := <-done; !errors.Is(err, ErrInterrupted) {
		t.Errorf("got %v", err)
	}
	if string(rest) != "interrupted\n" {
		t.Errorf("the worker wasn't asked to end: %q", rest)
	}
	if n := labProcesses(t, f.Path); n != 0 {
		t.Errorf("%d processes are left", n)
	}
}

// When the starter is killed the lab dies with it, and the next sweep removes its folder.
func TestKilledStarterLeavesNothing(t *testing.T) {
	folders(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperStarter$", "-test.v")
	cmd.Env = append(os.Environ(), "LAB_HELPER=1")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var folder string
	s := bufio.NewScanner(out)
	for s.Scan() {
		if f, ok := strings.CutPrefix(s.Text(), "folder "); ok {
			folder = f
		}
		if s.Text() == "up" {
			break
		}
		if strings.Contains(s.Text(), "SKIP") {
			_ = cmd.Wait()
			t.Skip("a lab isn't possible here")
		}
	}
	if got := Sweep(); len(got) != 0 {
		t.Errorf("swept a living lab: %v", got)
	}
	if labProcesses(t, folder) < 3 {
		t.Fatalf("the lab isn't up: %s", errs.String())
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	until(t, "the lab's processes are gone", func() bool { return labProcesses(t, folder) == 0 })
	// A process that is ending has no environment any more, but still its lock.
	var swept []string
	until(t, "the folder is swept", func() bool { swept = Sweep(); return len(swept) > 0 })
	if len(swept) != 1 || swept[0] != folder {
		t.Errorf("swept %v, want %s", swept, folder)
	}
	if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder is left: %v", err)
	}
}

// TestHelperStarter is not a test: it is the process that TestKilledStarterLeavesNothing kills.
func TestHelperStarter(t *testing.T) {
	if os.Getenv("LAB_HELPER") == "" {
		t.Skip("used by another test")
	}
	f, err := MakeFolder("")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("folder", f.Path)
	needNamespaces(t, Start(t.Context(), f, StartOptions{Args: []string{"wait"}, Stdout: os.Stdout, Stderr: os.Stderr}))
}

func workReady() error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	if err := Ready(); err != nil {
		return err
	}
	<-signals
	return nil
}

func TestDetachedLab(t *testing.T) {
	folders(t)
	f, err := MakeFolder("")
	if err != nil {
		t.Fatal(err)
	}
	path := f.Path
	err = Start(t.Context(), f, StartOptions{Args: []string{"ready"}, Detach: true, Log: filepath.Join(path, "log")})
	if err != nil {
		_ = f.Remove()
		needNamespaces(t, err)
		t.Fatal(err)
	}
	if err := f.Release(); err != nil {
		t.Fatal(err)
	}
	if used, known := inUse(path); !used || !known {
		t.Error("the lab doesn't hold its lock")
	}
	paths, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, p := range paths {
		env, err := os.ReadFile(p)
		if err == nil && bytes.Contains(env, []byte(envFolder+"="+path)) && bytes.Contains(env, []byte(envStage+"="+stageInit)) {
			var pid int
			if _, err := fmt.Sscanf(p, "/proc/%d/environ", &pid); err == nil {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
	until(t, "killing pid 1 ends the lab", func() bool { return labProcesses(t, path) == 0 })
	until(t, "the folder is removed", func() bool { return removeStale(path, 0) })
}
