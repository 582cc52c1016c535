package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"remaster/pkg/disk"
	"remaster/pkg/remaster"
	"remaster/pkg/source"
)

// app is what the commands share: where they print, and how much.
type app struct {
	out, errs io.Writer
	quiet     bool
	cloudy    bool // the command speaks to the cloud
}

// printf prints a result.
func (a *app) printf(format string, v ...any) { fmt.Fprintf(a.out, format, v...) }

// say prints a line on what goes on.
func (a *app) say(format string, v ...any) {
	if !a.quiet {
		fmt.Fprintf(a.errs, format+"\n", v...)
	}
}

// json prints v as an indented document.
func (a *app) json(v any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// base is an opened image.
type base struct {
	*remaster.Image
	path   string
	file   *source.File   // nil if it is not a local one
	object *remaster.Base // nil if it is not in OSS
}

func (b *base) Close() error {
	if b.file == nil {
		return nil
	}
	return b.file.Close()
}

// open opens the image in the file at path.
func (a *app) open(path, format string) (*base, error) {
	file, err := source.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := a.openBlob(file, path, format, nil)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	b.file = file
	return b, nil
}

// openBlob opens the image in blob; name is what the user calls it.
func (a *app) openBlob(blob disk.Blob, name, format string, object *remaster.Base) (*base, error) {
	var as remaster.Format
	if format != "" {
		f, err := remaster.ParseFormat(format)
		if err != nil {
			return nil, usageError{err}
		}
		as = f
	}
	img, err := remaster.Open(blob, as)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &base{Image: img, path: name, object: object}, nil
}

// splitGuestPath splits IMAGE:PATH, where PATH begins with a slash.
func splitGuestPath(s string) (image, path string, err error) {
	if i := strings.LastIndex(s, ":/"); i > 0 {
		return s[:i], s[i+1:], nil
	}
	return "", "", usagef("%q is not IMAGE:PATH with an absolute path, as in node.qcow2:/etc/fstab", s)
}

// progress shows how far a long step is: a line that is redrawn on a terminal, nothing
// elsewhere.
type progress struct {
	mu    sync.Mutex
	w     io.Writer
	what  string
	total int64
	done  int64
	begun time.Time
	drawn time.Time
	live  bool
}

func (a *app) progress(what string, total int64) *progress {
	f, ok := a.errs.(*os.File)
	live := ok && !a.quiet && os.Getenv("CI") == "" && term.IsTerminal(int(f.Fd()))
	return &progress{w: a.errs, what: what, total: total, begun: time.Now(), live: live}
}

// add is told how many more bytes are dealt with.
func (p *progress) add(n int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	if now := time.Now(); p.live && now.Sub(p.drawn) > 100*time.Millisecond {
		p.drawn = now
		percent := 100.0
		if p.total > 0 {
			percent = float64(p.done) * 100 / float64(p.total)
		}
		fmt.Fprintf(p.w, "\r%s %3.0f%% of %s\x1b[K", p.what, percent, size(p.total))
	}
}

// end clears the line.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

// size prints a number of bytes for people.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", f), ".0") + " " + units[i:i+1] + "iB"
}
