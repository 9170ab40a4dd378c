// Package netns runs code, opens sockets and starts processes inside a network namespace.
//
// A namespace is named by a path that setns(2) takes: /run/netns/NAME, /proc/PID/ns/net or the path of a [Namespace].
// The empty path is the current namespace, and then nothing is switched at all.
//
// A network namespace belongs to a thread, not to a process. Every function here therefore works on a goroutine of its
// own that is locked to its thread, and the thread is given back to the Go runtime only after it has returned to where it
// came from; if it can't return it dies with the goroutine. What is opened inside (a socket, a child process) stays
// inside for its whole life and can be used from any goroutine. All functions may be called concurrently.
package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"

	vns "github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrAborted is returned by Do when fn left its goroutine (runtime.Goexit, as t.FailNow does) instead of returning.
var ErrAborted = errors.New("function left the network namespace's thread without returning")

// Do runs fn on a thread that is inside the namespace at path. fn must do its work on the goroutine it is called on:
// goroutines it starts run outside.
func Do(path string, fn func() error) error {
	if path == "" {
		return fn()
	}
	done := make(chan error, 1)
	go func() {
		err := ErrAborted
		defer func() { done <- err }()
		err = onThread(path, fn)
	}()
	return <-done
}

// onThread must be called on a goroutine that ends soon after it: when the thread can't go back it stays locked, and
// ends with that goroutine.
func onThread(path string, fn func() error) (err error) {
	target, err := vns.GetFromPath(path)
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", path, err)
	}
	defer target.Close()
	runtime.LockOSThread()
	home, err := vns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("own network namespace: %w", err)
	}
	defer home.Close()
	if err := vns.Set(target); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	defer func() {
		if back := vns.Set(home); back != nil {
			err = errors.Join(err, fmt.Errorf("leave network namespace %s: %w", path, back))
			return
		}
		runtime.UnlockOSThread()
	}()
	return fn()
}

// Dial connects from inside the namespace. The host of addr must be an IP address (IPv6 with a zone is fine): looking a
// name up would leave the thread.
func Dial(ctx context.Context, path, network, addr string) (net.Conn, error) {
	return DialWith(ctx, path, &net.Dialer{}, network, addr)
}

// DialWith is Dial with the caller's dialer, for its Control function, local address or timeout.
func DialWith(ctx context.Context, path string, d *net.Dialer, network, addr string) (net.Conn, error) {
	if err := literal(path, network, addr); err != nil {
		return nil, err
	}
	var conn net.Conn
	err := Do(path, func() (err error) {
		conn, err = d.DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// Listen listens inside the namespace.
func Listen(ctx context.Context, path, network, addr string) (net.Listener, error) {
	if err := literal(path, network, addr); err != nil {
		return nil, err
	}
	var l net.Listener
	err := Do(path, func() (err error) {
		l, err = new(net.ListenConfig).Listen(ctx, network, addr)
		return err
	})
	return l, err
}

// ListenPacket opens a packet socket inside the namespace.
func ListenPacket(ctx context.Context, path, network, addr string) (net.PacketConn, error) {
	if err := literal(path, network, addr); err != nil {
		return nil, err
	}
	var c net.PacketConn
	err := Do(path, func() (err error) {
		c, err = new(net.ListenConfig).ListenPacket(ctx, network, addr)
		return err
	})
	return c, err
}

// Start starts cmd inside the namespace; cmd.Wait and the rest are the caller's as usual. Don't set Pdeathsig: the kernel
// sends it when the starting *thread* ends, and that thread is not the caller's to keep.
func Start(path string, cmd *exec.Cmd) error {
	return Do(path, cmd.Start)
}

// literal refuses addresses that would need a resolver. Unix sockets don't belong to a network namespace (by path).
func literal(path, network, addr string) error {
	if path == "" || network == "unix" || network == "unixgram" || network == "unixpacket" {
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("address %q: %w", addr, err)
	}
	if host == "" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fmt.Errorf("address %q inside a network namespace: %w", addr, err)
	}
	return nil
}

// Namespace is a network namespace without a name: it lives as long as it is open or something is inside, so a crashed
// process leaves none behind.
type Namespace struct {
	handle vns.NsHandle
	path   string
}

// Create makes a namespace whose loopback interface is up. The caller stays where it is.
func Create() (*Namespace, error) {
	var ns *Namespace
	done := make(chan error, 1)
	go func() {
		// The thread has seen unshare(2); ending it is simpler than trusting it again.
		runtime.LockOSThread()
		var err error
		ns, err = create()
		done <- err
	}()
	if err := <-done; err != nil {
		return nil, err
	}
	return ns, nil
}

func create() (*Namespace, error) {
	handle, err := vns.New()
	if err != nil {
		return nil, fmt.Errorf("create a network namespace: %w", err)
	}
	if err := loopbackUp(); err != nil {
		_ = handle.Close()
		return nil, fmt.Errorf("loopback of a new network namespace: %w", err)
	}
	return &Namespace{handle: handle, path: fmt.Sprintf("/proc/%d/fd/%d", unix.Getpid(), int(handle))}, nil
}

// Path names the namespace for the functions of this package, for nsenter(1) and for other processes of the same user,
// until Close.
func (n *Namespace) Path() string { return n.path }

// Close lets go of the namespace; it ends when nothing is inside any more. A second call does nothing.
func (n *Namespace) Close() error {
	if !n.handle.IsOpen() {
		return nil
	}
	return n.handle.Close()
}
