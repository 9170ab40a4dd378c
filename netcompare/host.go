package netcompare

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/internal/netns"
)

// What can be wrong with a node's interfaces and routes.
var (
	// ErrNoTap is returned by Join when the tap isn't there.
	ErrNoTap = errors.New("no such tap")
	// ErrNoBridge is returned by Join when the bridge isn't there or is something else.
	ErrNoBridge = errors.New("no such bridge")
	// ErrForeign is returned when an interface of the tap's name exists and isn't ours, or is another VM's.
	ErrForeign = errors.New("interface belongs to somebody else")
	// ErrNotPermitted is returned when the process may not change the network (CAP_NET_ADMIN in the network namespace).
	ErrNotPermitted = errors.New("not permitted to change the network")
)

// HostError says what was tried on which interface or address.
type HostError struct {
	Op    string // "join", "cut", …
	Link  string // interface, or the peer's address
	Netns string // "" = the process's own
	Err   error
}

func (e *HostError) Error() string {
	where := ""
	if e.Netns != "" {
		where = " in network namespace " + e.Netns
	}
	return fmt.Sprintf("%s %s%s: %v", e.Op, e.Link, where, e.Err)
}

func (e *HostError) Unwrap() error { return e.Err }

// Is lets the kernel's EPERM be found as ErrNotPermitted.
func (e *HostError) Is(target error) bool {
	return target == ErrNotPermitted && (errors.Is(e.Err, unix.EPERM) || errors.Is(e.Err, unix.EACCES))
}

// Host is where a node's taps, bridges and routes are. The zero value is the network namespace of the process.
// The kernel answers netlink at once, so contexts are only looked at on entry (and in Dial).
type Host struct {
	Netns string // path, such as /run/netns/NAME or /proc/PID/ns/net; "" = the current one
	// TapUser and TapGroup are who may open the taps, both being required, besides those who may change the network anyway: a QEMU without privileges runs
	// as them.
	TapUser, TapGroup uint32
}

// netlink calls fn with a netlink socket inside the namespace.
func (h Host) netlink(ctx context.Context, op, link string, fn func(*netlink.Handle) error) error {
	fail := func(err error) error {
		if err == nil {
			return nil
		}
		return &HostError{Op: op, Link: link, Netns: h.Netns, Err: err}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	var nl *netlink.Handle
	if err := netns.Do(h.Netns, func() (err error) {
		nl, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	}); err != nil {
		return fail(err)
	}
	defer nl.Close()
	// Not a limit that is ever near: it turns a kernel bug into an error.
	if err := nl.SetSocketTimeout(5 * time.Second); err != nil {
		return fail(err)
	}
	return fail(fn(nl))
}

// Dial connects from inside the namespace. addr must hold an IP address.
func (h Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return netns.Dial(ctx, h.Netns, network, addr)
}

// byName returns nil and no error for an interface that isn't there.
func byName(nl *netlink.Handle, name string) (netlink.Link, error) {
	l, err := nl.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil, nil
	}
	return l, err
}
