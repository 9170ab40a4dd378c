package blockrepl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/coloctl/coloctl/qmp"
)

// BackupServer is an NBD server with an export for each disk: that of disk D is
// called Prefix+D, and is as large as the disk or larger.
type BackupServer struct {
	Network, Address string // as for [net.Dial]: "tcp" or "unix"
	Prefix           string // empty, or ends with a slash

	// Patience is how long the server may take for one request before it is
	// given up; 30 s if 0. A flush may take ten times as long. No guest waits for it.
	Patience time.Duration
}

// nbdPort is where NBD servers listen.
const nbdPort = 10809

// ParseBackupServer reads nbd://HOST[:PORT][/PREFIX] or
// nbd+unix:///[PREFIX]?socket=PATH, the same as NBD's URIs, of which each disk's
// export is PREFIX/DISK. The error matches ErrBadServer.
func ParseBackupServer(uri string) (BackupServer, error) {
	bad := func(what string) (BackupServer, error) {
		return BackupServer{}, fmt.Errorf("%q: %w: %s; expected nbd://HOST[:PORT][/PREFIX] or nbd+unix:///[PREFIX]?socket=PATH", uri, ErrBadServer, what)
	}
	u, err := url.Parse(uri)
	if err != nil {
		return bad(err.Error())
	}
	var s BackupServer
	query := u.Query()
	socket := query.Get("socket")
	query.Del("socket")
	switch {
	case u.User != nil || u.Fragment != "" || u.Opaque != "" || len(query) > 0:
		return bad("it has parts that mean nothing here")
	case u.Scheme == "nbd" && u.Hostname() != "" && socket == "":
		port, err := strconv.ParseUint(cmp.Or(u.Port(), strconv.Itoa(nbdPort)), 10, 16)
		if err != nil || port == 0 {
			return bad("the port is none")
		}
		s.Network, s.Address = "tcp", net.JoinHostPort(u.Hostname(), strconv.FormatUint(port, 10))
	case u.Scheme == "nbd+unix" && u.Host == "" && filepath.IsAbs(socket):
		s.Network, s.Address = "unix", socket
	case u.Scheme == "nbds" || u.Scheme == "nbds+unix":
		return bad("TLS is not supported: use a tunnel")
	case u.Scheme == "nbd":
		return bad("which host?")
	case u.Scheme == "nbd+unix":
		return bad("the socket has to be an absolute path")
	default:
		return bad("the scheme is another one")
	}
	if s.Prefix = strings.Trim(u.Path, "/"); s.Prefix != "" {
		s.Prefix += "/"
	}
	return s, nil
}

// Export is the URI of a disk's export.
func (s BackupServer) Export(disk string) string {
	u := url.URL{Scheme: "nbd", Host: s.Address, Path: "/" + s.Prefix + disk}
	if s.Network == "unix" {
		u.Scheme, u.Host, u.RawQuery = "nbd+unix", "", "socket="+s.Address
	}
	return u.String()
}

func (s BackupServer) patience() time.Duration { return cmp.Or(s.Patience, answerWithin) }

func (s BackupServer) fault(d Disk, reason error, detail, advice string) error {
	return &ImageError{Disk: d.Name, Path: s.Export(d.Name), Reason: reason, Detail: detail, Advice: advice}
}

// Check tells why a backup of these disks to the server would be refused now. It
// writes nothing there.
func (s BackupServer) Check(ctx context.Context, disks []Disk) error {
	e, err := s.open(ctx, disks)
	e.Close()
	return err
}

// backupExports are connections to a server's exports, by disk.
type backupExports map[string]*nbdClient

// Close ends the connections.
func (e backupExports) Close() {
	for _, n := range e {
		_ = n.Close()
	}
}

// open connects to the exports of all disks, or to none. All that is wrong is told.
func (s BackupServer) open(ctx context.Context, disks []Disk) (backupExports, error) {
	e := backupExports{}
	var errs []error
	for _, d := range disks {
		n, err := s.openOne(ctx, d)
		if err != nil {
			errs = append(errs, err)
			if errors.Is(err, ErrNoServer) { // for all
				break
			}
			continue
		}
		e[d.Name] = n
	}
	if len(errs) > 0 {
		e.Close()
		return nil, errors.Join(errs...)
	}
	return e, nil
}

func (s BackupServer) openOne(ctx context.Context, d Disk) (*nbdClient, error) {
	dctx, cancel := context.WithTimeoutCause(ctx, s.patience(), fmt.Errorf("no answer for %v", s.patience()))
	defer cancel()
	n, err := dialNBD(dctx, new(net.Dialer).DialContext, s.Network, s.Address, s.Prefix+d.Name)
	var no *nbdRefusal
	switch {
	case ctx.Err() != nil:
		if err == nil {
			_ = n.Close()
		}
		return nil, context.Cause(ctx)
	case errors.As(err, &no):
		switch no.code {
		case nbdErrUnknown:
			return nil, s.fault(d, ErrNoExport, no.text, "serve one of that name")
		case nbdErrTLSRequired:
			return nil, s.fault(d, ErrNoExport, "it wants TLS, which backups don't speak", "use a tunnel")
		case nbdErrUnsupported:
			return nil, s.fault(d, ErrNoExport, "it is too old to be asked (NBD_OPT_GO)", "")
		}
		return nil, s.fault(d, ErrNoExport, err.Error(), "")
	case err != nil:
		return nil, s.fault(d, ErrNoServer, err.Error(), "start it, and see that this node may connect to it")
	case n.flags&nbdIsReadOnly != 0:
		_ = n.Close()
		return nil, s.fault(d, ErrExportReadOnly, "the server says that it is read-only", "serve it writable")
	case n.flags&nbdCanFlush == 0:
		_ = n.Close()
		return nil, s.fault(d, ErrExportUnsafe, "", "let the server offer flushes (nbd-server: flush = true)")
	case n.size < d.Size:
		_ = n.Close()
		return nil, s.fault(d, ErrExportSize, fmt.Sprintf("%d bytes instead of %d", n.size, d.Size), "")
	}
	return n, nil
}

// openExports connects to the server, if it is one that is written to.
func (o BackupOptions) openExports(ctx context.Context, disks []Disk) (backupExports, error) {
	if o.Server == nil {
		return nil, nil
	}
	if err := o.boundScratch(disks); err != nil {
		return nil, err
	}
	return o.Server.open(ctx, disks)
}

func (d Disk) backupView() string   { return "bkview-" + d.Name }
func (d Disk) backupExport() string { return "expbk-" + d.Name }

// endBackupExports removes what a backup to a server has made for its own reads.
// The NBD server is stopped only then: on a secondary it serves the peer.
func endBackupExports(ctx context.Context, c *qmp.Client, disks []Disk) error {
	exports, err := c.QueryBlockExports(ctx)
	if err != nil {
		return err
	}
	g, err := readGraph(ctx, c)
	if err != nil {
		return err
	}
	found := false
	for _, d := range disks {
		found = found || g.has(d.backupView())
		for _, e := range exports {
			if e.ID != d.backupExport() {
				continue
			}
			found = true
			if err := c.BlockExportDel(ctx, e.ID, "hard"); err != nil && !refused(err) {
				return err
			}
		}
	}
	if !found {
		return nil
	}
	if err := c.NBDServerStop(ctx); err != nil && !refused(err) { // returns when all exports are gone
		return err
	}
	for _, d := range disks {
		if g.has(d.backupView()) {
			if err := c.BlockdevDel(ctx, d.backupView()); err != nil {
				return err
			}
		}
	}
	return nil
}
