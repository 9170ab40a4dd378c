package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/colo/api/pki"
)

type callerKey struct{}

// localCaller is who the kernel says is at the other end of a unix socket.
type localCaller struct {
	cred *unix.Ucred
	err  error
}

// connCaller notes, once for each connection, who is at its other end.
func connCaller(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	var out localCaller
	raw, err := u.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { out.cred, out.err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	}
	if err != nil {
		out.err = err
	}
	return context.WithValue(ctx, callerKey{}, out)
}

// caller says who has sent a request.
func (s *Server) caller(r *http.Request) (Caller, error) {
	if local, ok := r.Context().Value(callerKey{}).(localCaller); ok {
		if local.err != nil {
			return Caller{}, apiErrorf(ErrUnauthenticated, "the kernel does not tell who is at the socket: %v", local.err)
		}
		return localIdentity(local.cred), nil
	}
	if r.TLS == nil {
		return Caller{}, apiErrorf(ErrUnauthenticated, "neither a unix socket nor TLS")
	}
	id, err := pki.PeerIdentity(r.TLS)
	if err != nil {
		return Caller{}, apiErrorf(ErrUnauthenticated, "%v", err)
	}
	return Caller{Name: id.Name, Role: id.Role, Via: "tls"}, nil
}

func localIdentity(cred *unix.Ucred) Caller {
	c := Caller{Name: fmt.Sprintf("uid %d", cred.Uid), Role: pki.Operator, Via: "unix", PID: int(cred.Pid)}
	if u, err := user.LookupId(strconv.Itoa(int(cred.Uid))); err == nil {
		c.Name = u.Username
	}
	if cred.Uid == 0 || int(cred.Uid) == os.Geteuid() {
		c.Role = pki.Admin
	}
	return c
}
