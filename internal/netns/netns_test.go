package netns

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"

	vns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func namespace(t *testing.T) *Namespace {
	t.Helper()
	ns, err := Create()
	if errors.Is(err, unix.EPERM) && os.Getenv("CI") != "true" {
		t.Skip("network namespaces need root (or an own user namespace): ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func here(t *testing.T) string {
	t.Helper()
	h, err := vns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	return h.UniqueId()
}

// After Do every thread that the runtime may hand out again is back home, also when fn fails, leaves its goroutine or is one of many.
func TestDoComesBack(t *testing.T) {
	a, b := namespace(t), namespace(t)
	runtime.LockOSThread()
	home := here(t)
	runtime.UnlockOSThread()
	seen := map[string]string{}
	for name, ns := range map[string]*Namespace{"a": a, "b": b} {
		if err := Do(ns.Path(), func() error { seen[name] = here(t); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if seen["a"] == home || seen["b"] == home || seen["a"] == seen["b"] {
		t.Fatalf("namespaces are not distinct: home %s, %v", home, seen)
	}
	boom := errors.New("boom")
	if err := Do(a.Path(), func() error { return boom }); !errors.Is(err, boom) {
		t.Fatalf("got %v, want the function's error", err)
	}
	if err := Do(a.Path(), func() error { runtime.Goexit(); return nil }); !errors.Is(err, ErrAborted) {
		t.Fatalf("got %v, want ErrAborted", err)
	}
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() { _ = Do(a.Path(), func() error { runtime.Gosched(); return nil }) })
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			if got := here(t); got != home {
				t.Errorf("a thread was left in %s, home is %s", got, home)
			}
		})
	}
	wg.Wait()
}

func TestSocketsStayInside(t *testing.T) {
	a, b := namespace(t), namespace(t)
	ctx := context.Background()
	l, err := Listen(ctx, a.Path(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "inside")
			c.Close()
		}
	}()
	conn, err := Dial(ctx, a.Path(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	conn.Close()
	if err != nil || string(got) != "inside" {
		t.Fatalf("read %q, %v", got, err)
	}
	if c, err := Dial(ctx, b.Path(), "tcp", l.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
		if err == nil {
			c.Close()
		}
		t.Fatalf("the other namespace reached it: %v", err)
	}
	if _, err := Dial(ctx, a.Path(), "tcp", "localhost:1"); err == nil || !strings.Contains(err.Error(), "localhost") {
		t.Fatalf("a name was accepted: %v", err)
	}

	p, err := ListenPacket(ctx, a.Path(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	u, err := Dial(ctx, a.Path(), "udp", p.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := u.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 8)
	if n, _, err := p.ReadFrom(buf); err != nil || string(buf[:n]) != "x" {
		t.Fatalf("datagram %q, %v", buf[:n], err)
	}
}

func TestStart(t *testing.T) {
	a := namespace(t)
	want := ""
	if err := Do(a.Path(), func() (err error) { want, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	cmd.Stdout = &out
	if err := Start(a.Path(), cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(out.String()); got != want {
		t.Fatalf("the process ran in %s, want %s", got, want)
	}
}

func TestNoSuchNamespace(t *testing.T) {
	err := Do("/run/netns/there-is-none", func() error { t.Error("fn ran"); return nil })
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "there-is-none") {
		t.Fatal(err)
	}
	if _, err := Dial(context.Background(), "/run/netns/there-is-none", "tcp", "127.0.0.1:1"); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

func TestCloseTwice(t *testing.T) {
	ns := namespace(t)
	for range 2 {
		if err := ns.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
