package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/coloctl/coloctl/colo/api"
	"github.com/coloctl/coloctl/colo/config"
)

// serve starts the API on the socket and on all addresses. The listeners are the server's to close.
func (d *node) serve(ctx context.Context, arb Arbiter) error {
	o := api.ServerOptions{Node: d.node, Version: d.p.Version, Arbiter: arb.Name, Exchange: arb.Exchange, Log: d.log, Health: d.health}
	if len(d.peers) > 0 {
		var names []string
		for _, p := range d.cfg.Peers {
			names = append(names, p.Name)
		}
		o.IsPeer = func(n string) bool { return slices.Contains(names, n) }
		o.PeerStatus = d.peerStatus
	}
	gid, err := d.cfg.SocketGID()
	if err != nil {
		return fmt.Errorf("api.socket-group: %w", err)
	}
	local, err := api.ListenUnix(ctx, d.cfg.API.Socket, gid)
	if err != nil {
		return fmt.Errorf("api.socket: %w", err)
	}
	all := []net.Listener{local}
	for _, a := range d.cfg.API.Listen {
		l, err := listenTCP(ctx, a)
		if err != nil {
			for _, l := range all {
				_ = l.Close()
			}
			return fmt.Errorf("api.listen: %w", err)
		}
		all = append(all, l)
	}
	if d.api, err = api.NewServer(o); err != nil {
		return err
	}
	tls := d.creds.Server()
	for i, l := range all {
		d.wg.Go(func() {
			var err error
			if i == 0 {
				err = d.api.Serve(l)
			} else {
				err = d.api.ServeTLS(l, tls)
			}
			if err != nil {
				d.fail(fmt.Errorf("api on %s: %w", l.Addr(), err))
			}
		})
		d.log.Info("listening", "node", d.cfg.Node, "address", l.Addr().String())
	}
	return nil
}

// listenTCP listens also on an address that this host does not have yet: networks may come later than the daemon.
func listenTCP(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1) }), err)
	}}
	return lc.Listen(ctx, "tcp", addr)
}

// health adds what the engine does not know to what the API says of the daemon.
func (d *node) health() []api.HealthItem {
	var out []api.HealthItem
	if err := d.creds.Err(); err != nil {
		out = append(out, api.HealthItem{Name: "certificate", Text: err.Error()})
	} else if w := config.ExpiryWarning(d.creds); w != "" {
		out = append(out, api.HealthItem{Name: "certificate", Text: w})
	} else {
		out = append(out, api.HealthItem{Name: "certificate", OK: true, Text: "valid until " + d.creds.NotAfter().Format("2006-01-02")})
	}
	for _, g := range d.greet {
		ok, text := g.last()
		name := "peer's daemon"
		if len(d.greet) > 1 {
			name = "daemon of " + g.want.Name
		}
		out = append(out, api.HealthItem{Name: name, OK: ok, Text: text})
	}
	if d.gate != nil {
		out = append(out, api.HealthItem{Name: "gate", Text: d.gate.Error() + ": while this daemon stands still a primary's ARP and IPv6 are not held"})
	} else {
		out = append(out, api.HealthItem{Name: "gate", OK: true, Text: "the kernel silences what COLO doesn't hold"})
	}
	if d.look != nil {
		ok, text := d.look.last()
		out = append(out, api.HealthItem{Name: "arbiter", OK: ok, Text: text})
	} else {
		out = append(out, api.HealthItem{Name: "arbiter", Text: "none is configured: after a loss only proof or a person lets a secondary go on"})
	}
	return out
}
