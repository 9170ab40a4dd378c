package daemon

import (
	"reflect"
	"slices"
	"strings"

	"github.com/coloctl/coloctl/colo/config"
)

// reload reads the file again and takes over what can change. A file that is wrong changes nothing.
func (d *node) reload() {
	next, err := config.Load(d.file)
	if err != nil {
		d.log.Error("reload: the configuration is wrong, nothing was changed", "node", d.cfg.Node, "err", err)
		return
	}
	d.level.Set(next.Log.SlogLevel())
	d.cfg.Log.Level = next.Log.Level
	for i := range d.cfg.Peers {
		if i < len(next.Peers) && next.Peers[i].Name == d.cfg.Peers[i].Name && !slices.Equal(next.Peers[i].API, d.cfg.Peers[i].API) {
			d.cfg.Peers[i].API = next.Peers[i].API
			d.peers[i].SetAddresses(next.Peers[i].API)
			d.log.Info("reload: the peer's daemon is asked elsewhere", "node", d.cfg.Node, "peer", next.Peers[i].Name, "addresses", next.Peers[i].API)
		}
	}
	if err := d.creds.Err(); err != nil {
		d.log.Error("reload: certificate", "node", d.cfg.Node, "err", err)
	}
	if left := changes(d.cfg, next); len(left) > 0 {
		d.log.Warn("reload: these changes need a restart of the daemon, which the guests don't notice", "node", d.cfg.Node, "fields", left)
	}
	d.log.Info("reloaded", "node", d.cfg.Node, "level", d.cfg.Log.Level)
}

// changes names the top-level fields in which two configurations differ.
func changes(a, b *config.Config) []string {
	var out []string
	va, vb := reflect.ValueOf(*a), reflect.ValueOf(*b)
	for i := range va.NumField() {
		if !reflect.DeepEqual(va.Field(i).Interface(), vb.Field(i).Interface()) {
			name, _, _ := strings.Cut(va.Type().Field(i).Tag.Get("yaml"), ",")
			out = append(out, name)
		}
	}
	return out
}
