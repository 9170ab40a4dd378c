package libvirt

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/digitalocean/go-libvirt/socket/dialers"
	"golang.org/x/sys/unix"
)

// Errors of this package.
var (
	// ErrUnreachable is matched by errors about a libvirtd that can't be reached, or that has gone away during a call.
	ErrUnreachable = errors.New("libvirtd can't be reached")
	// ErrNoDomain is returned for a domain that libvirt doesn't know.
	ErrNoDomain = errors.New("libvirt knows no such domain")
	// ErrNameTaken is returned by a Starter when a domain of the VM's name exists that isn't the VM's.
	ErrNameTaken = errors.New("libvirt has another domain of this name")
)

// Address is where libvirtd listens. The zero value is the system's.
type Address struct {
	Socket string // unix socket; libvirt's own for URI when empty
	URI    string // qemu:///system (default) or qemu:///session
}

const (
	uriSystem  = "qemu:///system"
	uriSession = "qemu:///session"
)

func (a Address) uri() string {
	if a.URI == "" {
		return uriSystem
	}
	return a.URI
}

// sockets are where libvirtd may be: the monolithic daemon, or the modular one for QEMU.
func (a Address) sockets() []string {
	if a.Socket != "" {
		return []string{a.Socket}
	}
	dir := "/run/libvirt"
	if a.uri() == uriSession {
		run := os.Getenv("XDG_RUNTIME_DIR")
		if run == "" {
			run = fmt.Sprintf("/run/user/%d", os.Geteuid())
		}
		dir = filepath.Join(run, "libvirt")
	}
	return []string{filepath.Join(dir, "virtqemud-sock"), filepath.Join(dir, "libvirt-sock")}
}

// callTimeout bounds a call whose context has no deadline of its own.
const callTimeout = 30 * time.Second

// Error is what libvirt answers when it refuses.
type Error struct {
	Op   string // what was asked
	Code uint32
	Msg  string
}

func (e *Error) Error() string { return fmt.Sprintf("libvirt: %s: %s", e.Op, e.Msg) }

// Is lets the code for a domain that isn't there be found as ErrNoDomain.
func (e *Error) Is(target error) bool {
	return target == ErrNoDomain && e.Code == uint32(golibvirt.ErrNoDomain)
}

// Conn is a connection to libvirtd.
type Conn struct {
	at   string
	sock net.Conn
	l    *golibvirt.Libvirt
}

// Dial connects.
func Dial(ctx context.Context, a Address) (*Conn, error) {
	var d net.Dialer
	var errs []error
	for _, path := range a.sockets() {
		sock, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c, w := &Conn{at: path, sock: sock}, newWire(sock)
		c.l = golibvirt.NewWithDialer(dialers.NewAlreadyConnected(w))
		err = c.call(ctx, "connect to "+a.uri(), func(l *golibvirt.Libvirt) error {
			defer close(w.opened)
			return l.ConnectToURI(golibvirt.ConnectURI(a.uri()))
		})
		if err != nil {
			_ = sock.Close()
			return nil, err
		}
		return c, nil
	}
	return nil, fmt.Errorf("%w: %w (is libvirtd running, and may this user connect to it?)", ErrUnreachable, errors.Join(errs...))
}

// Close ends the connection without a word: libvirtd needs none, and one that hangs would not hear it.
func (c *Conn) Close() error { return c.sock.Close() }

// call runs fn, which makes calls of go-libvirt's, until ctx ends. go-libvirt waits for an answer as long as it takes, so the connection is closed then, which
// ends fn as well. libvirtd may carry out what it was asked for.
func (c *Conn) call(ctx context.Context, op string, fn func(*golibvirt.Libvirt) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	done := make(chan error, 1)
	go func() { done <- fn(c.l) }()
	select {
	case err := <-done:
		return c.typed(op, err)
	case <-ctx.Done():
		_ = c.sock.Close()
		<-done
		return fmt.Errorf("%w: %s: no answer on %s: %w", ErrUnreachable, op, c.at, context.Cause(ctx))
	}
}

func (c *Conn) typed(op string, err error) error {
	var refused golibvirt.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return &Error{Op: op, Code: refused.Code, Msg: refused.Message}
	case errors.Is(err, golibvirt.ErrUnsupported):
		return &Error{Op: op, Msg: "this libvirt doesn't know the call"}
	}
	return fmt.Errorf("%w: %s: %s: %w", ErrUnreachable, op, c.at, err)
}

// peer says who runs libvirtd.
func (c *Conn) peer() (*unix.Ucred, error) { return peerOf(c.sock) }

// peerOf asks the kernel who is at the other end of a unix socket: for a server, who has begun to listen.
func peerOf(conn net.Conn) (*unix.Ucred, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%s is no unix socket", conn.RemoteAddr())
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var serr error
	if err := raw.Control(func(fd uintptr) { cred, serr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return nil, err
	}
	return cred, serr
}

// lookup finds a domain by its name.
func (c *Conn) lookup(ctx context.Context, name string) (golibvirt.Domain, error) {
	var d golibvirt.Domain
	err := c.call(ctx, "look up domain "+name, func(l *golibvirt.Libvirt) (err error) {
		d, err = l.DomainLookupByName(name)
		return err
	})
	return d, err
}
