module remaster

go 1.26
