package oracle

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// byMtools reads a FAT. It has neither owners nor modes, links, inodes or any time but
// that of a file's content.
func byMtools(tb testing.TB, raw string, f FileSystem) Tree {
	tb.Helper()
	dir := tb.TempDir()
	Run(tb, "mcopy", "-s", "-p", "-m", "-n", "-i", fmt.Sprintf("%s@@%d", raw, f.Off), "::/", dir)
	t := Tree{}
	for p, n := range walk(tb, dir) {
		n = Node{Mode: n.Mode.Type() | 0o755, Links: 1, Size: n.Size, MTime: n.MTime, SHA256: n.SHA256}
		if n.Mode.IsDir() {
			n.Size, n.MTime = 0, time.Time{}
		}
		t[p] = n
	}
	return t
}

// debugFS runs read-only commands of debugfs on a file system in a raw image and
// returns the answer to each.
func debugFS(tb testing.TB, raw string, f FileSystem, cmds []string) []string {
	tb.Helper()
	if len(cmds) == 0 {
		return nil
	}
	script := filepath.Join(tb.TempDir(), "debugfs")
	if err := os.WriteFile(script, []byte(strings.Join(cmds, "\n")+"\n"), 0o644); err != nil {
		tb.Fatal(err)
	}
	r := Try(tb, "debugfs", "-f", script, fmt.Sprintf("%s?offset=%d", raw, f.Off))
	if _, msg, _ := strings.Cut(r.Stderr, "\n"); r.Code != 0 || strings.TrimSpace(msg) != "" {
		tb.Fatalf("debugfs on %s at %d: exit %d: %s", raw, f.Off, r.Code, r.Stderr)
	}
	answers := make([]string, 0, len(cmds))
	rest := "\n" + r.Stdout
	for _, cmd := range cmds {
		_, after, found := strings.Cut(rest, "\ndebugfs: "+cmd+"\n")
		if !found {
			tb.Fatalf("debugfs on %s says nothing to %q: %q", raw, cmd, r.Stdout)
		}
		rest = "\n" + after
		answer, _, _ := strings.Cut(rest, "\ndebugfs: ")
		answers = append(answers, strings.TrimPrefix(answer, "\n"))
	}
	return answers
}

// byDebugFS reads an ext4 as debugfs does.
func byDebugFS(tb testing.TB, raw string, f FileSystem) Tree {
	tb.Helper()
	inodes := map[string]int{"/": 2} // path → inode
	for level := []string{"/"}; len(level) > 0; {
		var cmds, next []string
		for _, dir := range level {
			cmds = append(cmds, fmt.Sprintf("ls -p <%d>", inodes[dir]))
		}
		for i, answer := range debugFS(tb, raw, f, cmds) {
			for line := range strings.Lines(answer) {
				// /inode/mode/uid/gid/name/size/
				field := strings.Split(strings.TrimSpace(line), "/")
				if len(field) < 8 || field[1] == "0" || field[5] == "." || field[5] == ".." {
					continue // inode 0: an unused entry
				}
				p := path.Join(level[i], field[5])
				inodes[p] = atoi(tb, field[1])
				if strings.HasPrefix(field[2], "04") {
					next = append(next, p)
				}
			}
		}
		level = next
	}
	nodes := map[int]Node{}
	for _, ino := range inodes {
		nodes[ino] = Node{}
	}
	statInodes(tb, raw, f, nodes)
	t := Tree{}
	for p, ino := range inodes {
		t[p] = nodes[ino]
	}
	return t
}

var (
	statHead  = regexp.MustCompile(`^Inode: \d+ +Type: (\w+) .*Mode: +(\d+)`)
	statOwner = regexp.MustCompile(`User: +(\d+) +Group: +(\d+) .*Size: (\d+)`)
	statLinks = regexp.MustCompile(`\nLinks: (\d+) `)
	statTime  = regexp.MustCompile(`\n ([acm])time: 0x([0-9a-f]+)(?::([0-9a-f]+))?`)
	statXattr = regexp.MustCompile(`\n  ([a-z]+\.\S+) \((\d+)\)`)
	statLink  = regexp.MustCompile(`\nFast link dest: "(.*)"`)
)

// statInodes fills nodes, by inode number.
func statInodes(tb testing.TB, raw string, f FileSystem, nodes map[int]Node) {
	tb.Helper()
	dir := tb.TempDir()
	var inos []int
	var cmds []string
	for ino := range nodes {
		inos = append(inos, ino)
		cmds = append(cmds, fmt.Sprintf("stat <%d>", ino))
	}
	answers := debugFS(tb, raw, f, cmds)
	cmds = nil
	content := func(ino int) string { return filepath.Join(dir, strconv.Itoa(ino)) }
	for i, ino := range inos {
		n := parseStat(tb, answers[i])
		n.Inode = uint64(ino)
		if n.Mode.IsRegular() || n.Mode&fs.ModeSymlink != 0 && n.Target == "" {
			cmds = append(cmds, fmt.Sprintf("dump <%d> %s", ino, content(ino)))
		}
		for name := range n.Xattrs {
			cmds = append(cmds, fmt.Sprintf("ea_get -f %s.%s <%d> %s", content(ino), name, ino, name))
		}
		nodes[ino] = n
	}
	debugFS(tb, raw, f, cmds)
	read := func(file string) string {
		b, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		return string(b)
	}
	for ino, n := range nodes {
		if n.Mode.IsRegular() {
			n.SHA256 = SHA256(tb, content(ino))
		} else if n.Mode&fs.ModeSymlink != 0 && n.Target == "" {
			n.Target = read(content(ino))
		}
		for name := range n.Xattrs {
			n.Xattrs[name] = read(content(ino) + "." + name)
		}
		nodes[ino] = n
	}
}

var statTypes = map[string]fs.FileMode{"regular": 0, "directory": fs.ModeDir, "symlink": fs.ModeSymlink,
	"character": fs.ModeDevice | fs.ModeCharDevice, "block": fs.ModeDevice, "FIFO": fs.ModeNamedPipe, "socket": fs.ModeSocket}

// parseStat reads debugfs' answer to stat.
func parseStat(tb testing.TB, s string) Node {
	tb.Helper()
	head, owner, links := statHead.FindStringSubmatch(s), statOwner.FindStringSubmatch(s), statLinks.FindStringSubmatch(s)
	if head == nil || owner == nil || links == nil {
		tb.Fatalf("debugfs' stat says %q", s)
	}
	perm, err := strconv.ParseUint(head[2], 8, 32)
	if err != nil {
		tb.Fatal(err)
	}
	n := Node{Mode: statTypes[head[1]] | fs.FileMode(perm&0o777), UID: uint32(atoi(tb, owner[1])), GID: uint32(atoi(tb, owner[2])),
		Size: int64(atoi(tb, owner[3])), Links: uint64(atoi(tb, links[1])), Xattrs: map[string]string{}}
	for bit, mode := range map[uint64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if perm&bit != 0 {
			n.Mode |= mode
		}
	}
	for _, m := range statTime.FindAllStringSubmatch(s, -1) {
		sec, err := strconv.ParseUint(m[2], 16, 32)
		if err != nil {
			tb.Fatal(err)
		}
		extra, _ := strconv.ParseUint("0"+m[3], 16, 32)
		// ext4's extra field: two bits of seconds, thirty of nanoseconds.
		t := time.Unix(int64(int32(sec))+int64(extra&3)<<32, int64(extra>>2)).UTC()
		switch m[1] {
		case "a":
			n.ATime = t
		case "c":
			n.CTime = t
		case "m":
			n.MTime = t
		}
	}
	for _, m := range statXattr.FindAllStringSubmatch(s, -1) {
		n.Xattrs[m[1]] = ""
	}
	if m := statLink.FindStringSubmatch(s); m != nil {
		n.Target = m[1]
	}
	return n
}

func atoi(tb testing.TB, s string) int {
	tb.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		tb.Fatal(err)
	}
	return n
}
