package daemon

import (
	"io"
	"log/slog"

	"github.com/coloctl/coloctl/colo/config"
)

// newLogger makes the daemon's log. level can be changed while it runs.
func newLogger(w io.Writer, c config.Log, level *slog.LevelVar) *slog.Logger {
	level.Set(c.SlogLevel())
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
