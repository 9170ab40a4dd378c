package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"

	"github.com/coloctl/coloctl/colo/arbiter/witness"
	"github.com/coloctl/coloctl/colo/config"
)

// runWitness runs a witness until ctx ends.
func (p Program) runWitness(ctx context.Context, file string, hup <-chan os.Signal) (err error) {
	c, err := config.LoadWitness(file)
	if err != nil {
		return err
	}
	level := &slog.LevelVar{}
	log := newLogger(p.Stderr, c.Log, level).With("witness", c.Name)
	creds, err := c.Credentials()
	if err != nil {
		return err
	}
	if err := creds.Err(); err != nil {
		log.Error("certificate: nodes will refuse this witness", "err", err)
	} else if w := config.ExpiryWarning(creds); w != "" {
		log.Warn(w)
	}
	store, err := witness.Open(c.State)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	server, err := witness.NewServer(witness.ServerOptions{Store: store, Version: p.Version, Host: c.HostID, Log: log})
	if err != nil {
		return err
	}
	var listeners []net.Listener
	for _, a := range c.Listen {
		l, err := listenTCP(ctx, a)
		if err != nil {
			for _, l := range listeners {
				_ = l.Close()
			}
			return err
		}
		listeners = append(listeners, l)
	}
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	fatal := make(chan error, len(listeners))
	for _, l := range listeners {
		log.Info("listening", "address", l.Addr().String())
		wg.Go(func() {
			if err := server.Serve(work, l, creds); err != nil && work.Err() == nil {
				fatal <- fmt.Errorf("%s: %w", l.Addr(), err)
			}
		})
	}
	notify := newNotifier(log)
	wg.Go(func() { notify.watchdog(work, func() error { _, err := store.Records(); return err }) })
	defer func() {
		notify.stopping()
		stop()
		wg.Wait()
		log.Info("ended")
	}()
	notify.ready("")
	log.Info("ready", "version", p.Version, "instance", store.Instance())
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-fatal:
			return err
		case <-hup:
			notify.reloading()
			next, err := config.LoadWitness(file)
			if err != nil {
				log.Error("reload: the configuration is wrong, nothing was changed", "err", err)
			} else {
				level.Set(next.Log.SlogLevel())
				log.Info("reloaded: the log's level; everything else needs a restart", "level", next.Log.Level)
			}
			notify.ready("")
		}
	}
}
